"""Our blocks give what diffusers' modules with peft's layers give, and keep what they are told."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from tiny_training import TinySamples, reversed_on_odd_epochs, tiny_config, tiny_transformer
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

from kiss3d_train.adapter import add_adapter, trainable_parameters
from kiss3d_train.config import AdapterSection, Quantize
from kiss3d_train.data.stream import Stream
from kiss3d_train.fused import apply
from kiss3d_train.fused.apply import fuse_blocks
from kiss3d_train.fused.attention import attention
from kiss3d_train.memory import KEPT, Keep
from kiss3d_train.objective import Batch, loss_per_sample

CPU = torch.device("cpu")
KEEPS: tuple[Keep, ...] = ("products", "attention", "inputs")
Target = str | tuple[str, ...]


def adapted_transformer(targets: Target = "all-linear") -> Any:
    transformer = tiny_transformer()
    add_adapter(transformer, AdapterSection(rank=2, alpha=3, targets=targets), seed=3)
    torch.manual_seed(5)
    for name, weight in trainable_parameters(transformer).items():
        if ".lora_B." in name:
            torch.nn.init.normal_(weight, std=0.05)
    return transformer


def loss_and_gradients(transformer: Any) -> tuple[float, dict[str, Tensor]]:
    stream = Stream(TinySamples(), reversed_on_odd_epochs, tiny_config(), 0, 1)
    batch = Batch.stacked(stream.micro_batches(0))
    stream.close()
    weights = trainable_parameters(transformer)
    loss = loss_per_sample(transformer, batch, 1.0).mean()
    gradients = torch.autograd.grad(loss, list(weights.values()))
    return loss.item(), dict(zip(weights, gradients, strict=True))


def assert_same(transformer: Any, reference: Any) -> None:
    (loss, gradients), (wanted, exact) = map(loss_and_gradients, (transformer, reference))
    assert loss == pytest.approx(wanted, rel=1e-5)
    assert list(gradients) == list(exact)
    for name, gradient in exact.items():
        assert (gradients[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    """Sets what compiles the blocks; afterwards nothing compiled is left."""

    def use(backend: Any) -> None:
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))

    apply.compiled.cache_clear()
    torch._dynamo.reset()
    yield use
    apply.compiled.cache_clear()
    torch._dynamo.reset()


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize(
    "targets", ["all-linear", "attention", ("attn.to_k", "proj_out", "ff.net.0.proj")]
)
def test_losses_and_gradients_are_those_of_diffusers_and_peft(keep: Keep, targets: Target) -> None:
    fused = adapted_transformer(targets)
    fuse_blocks(fused, CPU, [keep, keep], compile=False, quantize="none")
    assert_same(fused, adapted_transformer(targets))


def test_compiled_blocks_have_whole_graphs_and_are_compiled_once(
    compiler: Callable[[Any], None],
) -> None:
    graphs = []

    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return aot_autograd(fw_compiler=make_boxed)(graph, inputs)

    compiler(counting)
    fused = adapted_transformer()
    fuse_blocks(fused, CPU, ["products", "inputs"], compile=True, quantize="none")
    assert_same(fused, adapted_transformer())
    assert len(graphs) == 2  # torch.compile(fullgraph=True) raises at a break
    for _ in range(2):
        loss_and_gradients(fused)
    assert len(graphs) == 2


@pytest.mark.parametrize("keep", KEEPS)
def test_compiled_blocks_keep_what_the_plan_counts(
    keep: Keep, compiler: Callable[[Any], None]
) -> None:
    kept: list[float] = []

    def counting(graph: Any, inputs: Any) -> Any:
        outputs = next(node for node in graph.graph.nodes if node.op == "output").args[0]
        kept.append(sum(size_in_tokens(node) for node in outputs[2:]))
        return make_boxed_func(graph.forward)

    compiler(
        aot_autograd(
            fw_compiler=counting,
            bw_compiler=make_boxed,
            partition_fn=min_cut_rematerialization_partition,
        )
    )
    fused = adapted_transformer()
    fuse_blocks(fused, CPU, [keep, keep], compile=True, quantize="none")
    loss_and_gradients(fused)
    # Beside them: what a single block's outputs are views of, and results as narrow as the rank.
    assert kept[0] == pytest.approx(KEPT[keep][0], abs=0.5)
    assert kept[1] - 1 == pytest.approx(KEPT[keep][1], abs=0.5)


def make_boxed(graph: Any, inputs: Any) -> Any:
    return make_boxed_func(graph.forward)


def size_in_tokens(node: Any) -> float:
    """Of a tensor that depends on the tokens, in tensors of 4 x 13 tokens x 32 channels."""
    value = node.meta["val"]
    is_weight = node.op == "placeholder" and value.ndim < 3
    is_modulation = value.ndim == 2 and value.shape[0] == 4
    return 0.0 if is_weight or is_modulation else value.numel() / (4 * 13 * 32)


def test_names_and_values_of_the_adapter_stay() -> None:
    reference, fused = adapted_transformer(), adapted_transformer()
    fuse_blocks(fused, CPU, ["products"] * 2, compile=False, quantize="none")
    wanted, found = trainable_parameters(reference), trainable_parameters(fused)
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], weight) for name, weight in wanted.items())
    state, before = fused.state_dict(), reference.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(("quantize", "error"), [("int8", 0.05), ("fp8", 0.2)])
def test_a_quantized_base_is_near_and_takes_8_bits(quantize: Quantize, error: float) -> None:
    reference, fused = adapted_transformer(), adapted_transformer()
    fuse_blocks(fused, CPU, ["products"] * 2, compile=False, quantize=quantize)
    (_, found), (_, wanted) = map(loss_and_gradients, (fused, reference))
    distance = sum((found[name] - gradient).square().sum() for name, gradient in wanted.items())
    assert 0 < distance < error**2 * sum(x.square().sum() for x in wanted.values())
    left = [n for n, p in fused.named_parameters() if "blocks" in n and p.ndim == 2]
    assert all(".lora_" in name or (quantize == "fp8" and ".norm" in name) for name in left)


def test_gradients_of_attention_are_exact() -> None:
    torch.manual_seed(0)
    heads, channels = 3, 4
    width = heads * channels
    qkvs = [torch.randn(2, t, 3 * width, dtype=torch.float64, requires_grad=True) for t in (2, 4)]
    norms = [torch.rand(channels, dtype=torch.float64) for _ in range(4)]
    angles = torch.rand(6, channels // 2, dtype=torch.float64).repeat_interleave(2, dim=1)
    run = partial(attention, norms_C=norms, cos_TC=angles.cos(), sin_TC=angles.sin(), heads=heads)
    assert torch.autograd.gradcheck(lambda *x: run(list(x))[0], qkvs)
    # A gradient that is a slice of something wider, as in Flux's single blocks.
    wide = torch.randn(2, 6, 5 * width, dtype=torch.float64)[..., :width]
    out = run(qkvs)[0]
    sliced = torch.autograd.grad(out, qkvs, wide, retain_graph=True)
    whole = torch.autograd.grad(out, qkvs, wide.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(sliced, whole, strict=True))
