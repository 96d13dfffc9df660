"""The distributed optimizer behind one small interface: DeepSpeed ZeRO 0-3, or plain DDP.

The rest of the trainer sees `forward_backward`, `step`, and the training state as whole tensors by
name, so that a checkpoint knows nothing of workers, ZeRO stages or engines.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kiss3d_train.adapter import trainable_parameters
from kiss3d_train.config import OptimizerSection, TrainConfig

LossFn = Callable[[nn.Module, Any], Tensor]
"""Losses of a model on a batch: [B], one per sample; for validation also [B, ...], in parts."""

KINDS = ("weight", "exp_avg", "exp_avg_sq")
"""What is kept of a LoRA parameter: its float32 master and the two Adam moments."""

State = dict[str, dict[str, Tensor]]
"""kind -> parameter name -> whole float32 tensor on the CPU."""


class Batch(Protocol):
    """Samples of a forward pass."""

    def to(self, device: torch.device) -> Self:
        """The same on a device."""


class Engine(ABC):
    """A transformer with an adapter, or whole networks, trained by all workers together.

    Methods marked collective must be called by all workers.

    Attributes:
        model: what to call for a forward pass.
        device: where batches go.
        parameters: the trainable parameters by checkpoint name.
    """

    model: nn.Module

    def __init__(self, transformer: nn.Module, device: torch.device, autocast: bool) -> None:
        self.device = device
        self.parameters = trainable_parameters(transformer)
        self._autocast = autocast

    def forward_backward(self, loss_fn: LossFn, micro_batches: Sequence[Batch]) -> Tensor:
        """Accumulate gradients over this worker's share of a step; returns its mean loss."""
        losses = [
            self._forward_backward(loss_fn, batch.to(self.device), len(micro_batches), is_last)
            for batch, is_last in _marking_last(micro_batches)
        ]
        return torch.stack(losses).mean()

    def losses(self, loss_fn: LossFn, batch: Batch) -> Tensor:
        """What `loss_fn` gives, without gradients. Collective for ZeRO-3: all workers must call."""
        with torch.no_grad(), self._precision():
            return loss_fn(self.model, batch.to(self.device))

    @abstractmethod
    def step(self, lr: float) -> Tensor:
        """Clip and apply the accumulated gradients; returns their norm before clipping."""

    @abstractmethod
    def gather(self) -> State:
        """The whole training state on rank 0, empty elsewhere. Collective."""

    @abstractmethod
    def scatter(self, state: Mapping[str, Mapping[str, Tensor]], step: int) -> None:
        """Take over a gathered state after `step` optimizer steps. Collective."""

    @abstractmethod
    def _forward_backward(
        self, loss_fn: LossFn, batch: Batch, num_micro: int, is_last: bool
    ) -> Tensor: ...

    def _precision(self) -> AbstractContextManager[Any]:
        if not self._autocast:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


class DdpEngine(Engine):
    """PyTorch DistributedDataParallel: everything replicated, gradients averaged in buckets.

    A single worker has nothing to average, and does without the buckets' copies. Passes that are
    recorded leave all gradients at once, so that nothing would overlap; and PyTorch warns that the
    wrapper's hold on the gradients' accumulation can break a recording. Such gradients are
    averaged here.
    """

    def __init__(self, transformer: nn.Module, config: TrainConfig, device: torch.device) -> None:
        transformer.to(device)
        super().__init__(transformer, device, config.base.dtype == "bfloat16")
        self.model = transformer
        self._unsynchronized: Callable[[], AbstractContextManager[Any]] = nullcontext
        is_one_of_several = dist.get_world_size() > 1
        self._averages_itself = is_one_of_several and config.engine.cuda_graphs
        if is_one_of_several and not self._averages_itself:
            bucket_mb = 4 * bucket_elements(config, self.parameters) / 2**20
            self.model = nn.parallel.DistributedDataParallel(
                transformer, gradient_as_bucket_view=True, bucket_cap_mb=max(1, round(bucket_mb))
            )
            self._unsynchronized = self.model.no_sync
        self._optimizer = create_optimizer(self.parameters, config.optimizer, device)
        self._max_grad_norm = config.optimizer.max_grad_norm

    def _forward_backward(
        self, loss_fn: LossFn, batch: Batch, num_micro: int, is_last: bool
    ) -> Tensor:
        with nullcontext() if is_last else self._unsynchronized():
            with self._precision():
                loss = loss_fn(self.model, batch).mean()
            (loss / num_micro).backward()  # type: ignore[no-untyped-call]
        if is_last and self._averages_itself:
            _average_gradients(self.parameters.values())
        return loss.detach()

    def step(self, lr: float) -> Tensor:
        """See `Engine.step`."""
        norm = nn.utils.clip_grad_norm_(list(self.parameters.values()), self._max_grad_norm)
        _set_lr(self._optimizer, lr)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def gather(self) -> State:
        """See `Engine.gather`."""
        return _gather_replicated(self.parameters, self._optimizer)

    def scatter(self, state: Mapping[str, Mapping[str, Tensor]], step: int) -> None:
        """See `Engine.scatter`."""
        _scatter_replicated(self.parameters, self._optimizer, state, step)


def _average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace all workers' gradients by their mean. Collective."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    together = nn.utils.parameters_to_vector(gradients)
    dist.all_reduce(together)
    nn.utils.vector_to_parameters(together / dist.get_world_size(), gradients)


class DeepSpeedEngine(Engine):
    """DeepSpeed ZeRO; float32 masters, and bfloat16 compute through torch's autocast."""

    def __init__(self, transformer: nn.Module, config: TrainConfig, device: torch.device) -> None:
        import deepspeed

        super().__init__(transformer, device, config.base.dtype == "bfloat16")
        self._stage = config.engine.zero_stage
        self._max_grad_norm = config.optimizer.max_grad_norm
        self._optimizer = create_optimizer(self.parameters, config.optimizer, device)
        _start_deepspeed(device)
        self._engine, *_ = deepspeed.initialize(
            model=transformer,
            model_parameters=list(self.parameters.values()),
            optimizer=self._optimizer,
            config=deepspeed_config(config, bucket_elements(config, self.parameters)),
        )
        self.model = self._engine

    def _forward_backward(
        self, loss_fn: LossFn, batch: Batch, num_micro: int, is_last: bool
    ) -> Tensor:
        loss = loss_fn(self.model, batch).mean()
        self._engine.backward(loss)  # divides by the number of micro batches itself
        if not is_last:
            self._engine.step()  # only counts; the last micro batch's step is `step`
        return loss.detach()

    def _precision(self) -> AbstractContextManager[Any]:
        return nullcontext()  # DeepSpeed switches off an autocast that it did not start

    def step(self, lr: float) -> Tensor:
        """See `Engine.step`."""
        _set_lr(self._engine.optimizer, lr)
        if self._stage == 0:  # DeepSpeed clips here too, but does not tell the norm
            norm = nn.utils.clip_grad_norm_(list(self.parameters.values()), self._max_grad_norm)
            self._engine.step()
        else:
            self._engine.step()
            norm = self._engine.get_global_grad_norm()
        return torch.as_tensor(norm, dtype=torch.float32, device=self.device)

    def gather(self) -> State:
        """See `Engine.gather`."""
        if self._stage == 0:
            return _gather_replicated(self.parameters, self._optimizer)
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        self._ensure_moments()
        state: State = {kind: {} for kind in KINDS}
        for name, parameter in self.parameters.items():
            whole = {kind: safe_get_full_optimizer_state(parameter, kind) for kind in KINDS[1:]}
            whole["weight"] = safe_get_full_fp32_param(parameter)
            if dist.get_rank() == 0:
                for kind in KINDS:
                    state[kind][name] = on_cpu(whole[kind])
        return state

    def scatter(self, state: Mapping[str, Mapping[str, Tensor]], step: int) -> None:
        """See `Engine.scatter`."""
        if self._stage == 0:
            _scatter_replicated(self.parameters, self._optimizer, state, step)
            return
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        self._ensure_moments()
        for name, parameter in self.parameters.items():
            safe_set_full_fp32_param(parameter, state["weight"][name])
            for kind in KINDS[1:]:
                safe_set_full_optimizer_state(parameter, state[kind][name], kind)
        self._refresh_working_copies(state["weight"])
        for moments in self._optimizer.state.values():
            moments["step"].fill_(step)

    def _ensure_moments(self) -> None:
        """Create Adam's moments of this worker's shard, which torch would at the first step."""
        zero = self._engine.optimizer
        shards = (
            zero.fp32_partitioned_groups_flat
            if self._stage == 3
            else zero.single_partition_of_fp32_groups
        )
        for shard in shards:
            _ensure_moments(self._optimizer, shard)
        if self._stage < 3:
            # DeepSpeed links parameters to their moments within its first step; there is no public
            # way to have it done before.
            zero._lazy_init_hp_params_optimizer_state()

    def _refresh_working_copies(self, weights: Mapping[str, Tensor]) -> None:
        """Copy the masters into what the forward pass reads, as DeepSpeed does after a step."""
        import deepspeed

        parameters = list(self.parameters.values())
        gathered = (
            deepspeed.zero.GatheredParameters(parameters, modifier_rank=0)
            if self._stage == 3
            else nullcontext()
        )
        with torch.no_grad(), gathered:
            if self._stage < 3 or dist.get_rank() == 0:
                for name, parameter in self.parameters.items():
                    parameter.copy_(weights[name])


def create_engine(transformer: nn.Module, config: TrainConfig, device: torch.device) -> Engine:
    """Wrap a transformer that has its adapter; the process group must exist."""
    if device.type == "cuda":
        # For diffusers' own blocks (ZeRO-3); ours call it themselves (see fused/attention.py for
        # what goes wrong).
        torch.backends.cuda.enable_cudnn_sdp(False)
    engine = DeepSpeedEngine if config.engine.kind == "deepspeed" else DdpEngine
    return engine(transformer, config, device)


def create_optimizer(
    parameters: Mapping[str, nn.Parameter], config: OptimizerSection, device: torch.device
) -> torch.optim.AdamW:
    """AdamW as a torch object: naming it in DeepSpeed's configuration would compile a kernel.

    Biases and the weights of norms, which are vectors, do not decay.
    """
    matrices = [parameter for parameter in parameters.values() if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters.values() if parameter.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": matrices}]
    if vectors:  # an adapter has none
        groups.append({"params": vectors, "weight_decay": 0.0})
    return torch.optim.AdamW(
        groups,
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=device.type == "cuda",
    )


def bucket_elements(config: TrainConfig, parameters: Mapping[str, nn.Parameter]) -> int:
    """Elements per gradient bucket: as configured, else an eighth of the adapter."""
    return config.engine.bucket_of(sum(parameter.numel() for parameter in parameters.values()))


def reduces_in_buckets(config: TrainConfig) -> bool:
    """Whether workers exchange gradients in such buckets; recorded passes and, without ZeRO,
    DeepSpeed do not."""
    is_zero_0 = config.engine.kind == "deepspeed" and config.engine.zero_stage == 0
    return config.scaling.workers > 1 and not is_zero_0 and not config.engine.cuda_graphs


def deepspeed_config(config: TrainConfig, bucket: int) -> dict[str, Any]:
    """DeepSpeed's own configuration for a recipe."""
    settings: dict[str, Any] = {
        "train_batch_size": config.data.global_batch,
        "train_micro_batch_size_per_gpu": config.scaling.micro_batch,
        "zero_optimization": {
            "stage": config.engine.zero_stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "overlap_comm": config.scaling.use_gpu,
        },
        "steps_per_print": None,
    }
    if config.engine.zero_stage > 0:
        settings["gradient_clipping"] = config.optimizer.max_grad_norm
    if config.base.dtype == "bfloat16":
        # Not "bf16": that would cast the adapter's parameters too. No "safe" modules: gradients of
        # those would be reduced in bfloat16.
        settings["torch_autocast"] = {
            "enabled": True,
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        }
    return settings


def _start_deepspeed(device: torch.device) -> None:
    import deepspeed

    if device.type == "cpu":
        import deepspeed.ops

        # Otherwise a shared-memory all-reduce that only inference uses is compiled for a minute.
        deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)


def _marking_last(batches: Sequence[Batch]) -> Iterator[tuple[Batch, bool]]:
    for number, batch in enumerate(batches, start=1):
        yield batch, number == len(batches)


def _set_lr(optimizer: Any, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def on_cpu(tensor: Tensor) -> Tensor:
    """A contiguous float32 copy in main memory."""
    copy = tensor.detach().to("cpu", torch.float32, copy=True)
    return copy.contiguous()  # a convolution's weight may be channels last


def _ensure_moments(optimizer: torch.optim.Optimizer, parameter: Tensor) -> None:
    if not optimizer.state[parameter]:
        is_fused = bool(optimizer.defaults.get("fused"))
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device if is_fused else "cpu"),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }


def _gather_replicated(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> State:
    state: State = {kind: {} for kind in KINDS}
    if dist.get_rank() > 0:
        return state
    for name, parameter in parameters.items():
        _ensure_moments(optimizer, parameter)
        state["weight"][name] = on_cpu(parameter)
        for kind in KINDS[1:]:
            state[kind][name] = on_cpu(optimizer.state[parameter][kind])
    return state


@torch.no_grad()
def _scatter_replicated(
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Mapping[str, Tensor]],
    step: int,
) -> None:
    for name, parameter in parameters.items():
        _ensure_moments(optimizer, parameter)
        parameter.copy_(state["weight"][name])
        for kind in KINDS[1:]:
            optimizer.state[parameter][kind].copy_(state[kind][name])
        optimizer.state[parameter]["step"].fill_(step)
