"""Fused and compiled blocks on a GPU give the gradients of diffusers' own."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from kiss3d_train.adapter import add_adapter, trainable_parameters
from kiss3d_train.config import AdapterSection, Quantize
from kiss3d_train.fused import attention as kernels
from kiss3d_train.fused import fp8
from kiss3d_train.fused.apply import fuse_blocks
from kiss3d_train.fused.attention import attention
from kiss3d_train.memory import Keep

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
HEADS, CHANNELS, IMAGE, TEXT = 8, 128, 1024, 256
WIDTH = HEADS * CHANNELS
CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def without_cudnn_in_diffusers_modules() -> Iterator[None]:
    """Which would give them wrong gradients, and leave a wrong plan behind for ours."""
    torch.backends.cuda.enable_cudnn_sdp(False)
    yield
    torch.backends.cuda.enable_cudnn_sdp(True)


@pytest.mark.parametrize("order", [("whole", "slice"), ("slice", "whole")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_attention_takes_gradients_of_any_layout_in_any_order(
    order: tuple[str, str], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    text = 17 if order[0] == "whole" else 35  # a plan of its own for each order
    angles = torch.rand(text + IMAGE, CHANNELS // 2, device=CUDA).repeat_interleave(2, dim=1)
    norms = [torch.rand(CHANNELS, device=CUDA) for _ in range(4)]
    for layout in order:
        qkvs = [normal(tokens, 3 * WIDTH) for tokens in (text, IMAGE)]
        wide = normal(text + IMAGE, 5 * WIDTH).to(dtype)[..., :WIDTH]
        wide = wide if layout == "slice" else wide.contiguous()
        results = {}
        for device, precision in (("cuda", dtype), ("cpu", torch.float32)):
            inputs = [x.to(device, dtype).to(precision).requires_grad_() for x in qkvs]
            weights = [norm.to(device, dtype).to(precision) for norm in norms]
            positions = angles.cos().to(device), angles.sin().to(device)
            out = attention(inputs, weights, *positions, HEADS)[0]
            found = torch.autograd.grad(out, inputs, wide.to(device, precision))
            results[device] = [x.detach().float().cpu() for x in (out, *found)]
        for a, b in zip(results["cuda"], results["cpu"], strict=True):
            assert (a - b).norm() / b.norm() < (1e-2 if dtype == torch.bfloat16 else 1e-5)


def test_flash_attention_is_an_equal_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    qkv = normal(IMAGE, 3 * WIDTH).bfloat16().requires_grad_()
    norms = [torch.ones(CHANNELS, device=CUDA) for _ in range(2)]
    angles = torch.rand(IMAGE, CHANNELS, device=CUDA)
    gradient = normal(IMAGE, WIDTH).bfloat16()
    results = []
    for kernel in (kernels.kernel_for(qkv), kernels._FLASH):
        monkeypatch.setattr(kernels, "kernel_for", lambda x, kernel=kernel: kernel)
        out = attention([qkv], norms, angles.cos(), angles.sin(), HEADS)[0]
        results.append([out, *torch.autograd.grad(out, [qkv], gradient)])
    for a, b in zip(*results, strict=True):
        assert (a.float() - b.float()).norm() < 1e-2 * b.float().norm()


@pytest.mark.parametrize("compiles", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("keep", ["products", "attention", "inputs"])
def test_gradients_are_as_near_to_exact_ones_as_those_of_diffusers(
    compiles: bool, keep: Keep
) -> None:
    torch._dynamo.reset()
    exact = gradients(transformer().float())
    stock = transformer()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        stock_grads = gradients(stock)
    fused = transformer()
    fuse_blocks(fused, CUDA, [keep] * 4, compile=compiles, quantize="none")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        fused_grads = gradients(fused)
    assert fused_grads.keys() == exact.keys()
    errors = [distance(fused_grads, exact), distance(stock_grads, exact)]
    print(f"{keep} compiled={compiles}: ours {errors[0]:.4f}, diffusers {errors[1]:.4f}")
    assert errors[0] < 1.2 * errors[1]


@pytest.mark.parametrize(("quantize", "limit"), [("int8", 0.03), ("fp8", 0.12)])
def test_a_quantized_base_stays_near(quantize: Quantize, limit: float) -> None:
    torch._dynamo.reset()
    exact = gradients(transformer().float())
    fused = transformer()
    fuse_blocks(fused, CUDA, ["products"] * 4, compile=True, quantize=quantize)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        error = distance(gradients(fused), exact)
    print(f"{quantize}: {error:.4f}")
    assert error < limit


def test_8_bit_products_are_those_of_the_cpu() -> None:
    torch.manual_seed(0)
    parts = [torch.randn(64, width).bfloat16() for width in (96, 2048)]
    weight, bias = torch.randn(48, 96 + 2048).bfloat16(), torch.randn(48).bfloat16()
    results = []
    for device in ("cpu", "cuda"):
        x = fp8.rounded([part.to(device) for part in parts])
        w = fp8.rounded([weight.to(device)])
        results.append(fp8.product(*x, *w, bias.to(device), torch.bfloat16).float().cpu())
    assert (results[0] - results[1]).norm() < 5e-3 * results[0].norm()


def transformer() -> Any:
    """Two double and two single blocks in bfloat16 with a float32 adapter that is not zero."""
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    with CUDA:
        model = FluxTransformer2DModel(
            in_channels=64,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=CHANNELS,
            num_attention_heads=HEADS,
            joint_attention_dim=256,
            pooled_projection_dim=64,
            guidance_embeds=True,
        ).to(torch.bfloat16)
    add_adapter(model, AdapterSection(rank=16), seed=0)
    generator = torch.Generator(CUDA).manual_seed(1)
    for name, weight in trainable_parameters(model).items():
        if ".lora_B." in name:
            weight.data.normal_(std=0.02, generator=generator)
    return model


def gradients(model: Any) -> dict[str, Tensor]:
    torch.manual_seed(2)
    out = model(
        hidden_states=normal(IMAGE, 64),
        timestep=torch.tensor([0.5], device=CUDA),
        guidance=torch.ones(1, device=CUDA),
        encoder_hidden_states=normal(TEXT, 256),
        pooled_projections=torch.randn(1, 64, device=CUDA),
        txt_ids=torch.zeros(TEXT, 3, device=CUDA),
        img_ids=torch.stack([torch.arange(IMAGE, device=CUDA) // s % 32 for s in (1024, 32, 1)], 1),
        return_dict=False,
    )[0]
    (out.float() - normal(IMAGE, 64)).square().mean().backward()
    return {name: weight.grad for name, weight in trainable_parameters(model).items()}


def distance(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Relative, over all gradients together."""
    total = sum((found[n].double() - w.double()).square().sum() for n, w in wanted.items())
    return float((total / sum(w.double().square().sum() for w in wanted.values())) ** 0.5)


def normal(*shape: int) -> Tensor:
    return torch.randn(1, *shape, device=CUDA)
