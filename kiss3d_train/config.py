"""Everything a training recipe can say: one frozen section per concern, each field explained."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from kiss3d_infer.config import Config, Integer, Number
from kiss3d_infer.errors import InputError
from kiss3d_train.data.storage import Place, absolute, parse_place
from kiss3d_train.whole.config import FullSection


def _place(value: object) -> object:
    try:
        return parse_place(value) if isinstance(value, str) else value
    except InputError as error:  # told together with all else that is wrong
        raise ValueError(f"{error.what}: {error.fix}") from error


DataPlace = Annotated[Path | str, BeforeValidator(_place)]
Positive = Annotated[Integer, Field(gt=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
Sigma = Annotated[Number, Field(gt=0, lt=1)]
Quantize = Literal["none", "int8", "fp8"]
Prompt = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Endings = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
OnCorrupt = Literal["stop", "skip"]
"""What a damaged sample does to a run; see `DataSection.on_corrupt`."""


class RunSection(Config):
    """Where the run lives, how long it takes and how it starts."""

    dir: Path
    """Folder of the run: checkpoints/, adapter/, summary.json. All nodes must see it."""
    steps: Positive
    """Optimizer steps from the beginning of training, counting those before a resume."""
    seed: Integer = 0
    """Determines adapter initialisation, sample order, noise, timesteps and caption dropout."""
    resume: str = "auto"
    """auto: continue from the newest intact checkpoint of run.dir, if any. never: run.dir must be
    empty. Otherwise the path of a checkpoint to continue from."""
    log_every: Positive = 10
    """Steps between progress lines; in between metrics stay on the device."""


class BaseSection(Config):
    """The frozen Flux model that the adapter is trained on."""

    path: Path
    """A diffusers folder, or a single safetensors file."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of the frozen weights; with bfloat16 the forward pass runs under autocast."""
    gradient_checkpointing: Literal["auto"] | bool = "auto"
    """Compute what a block does again in its backward pass, to save memory. auto: in as few blocks
    and as little as engine.memory_budget_gib allows; true: everything; false: cheap things only."""
    quantize: Quantize = "none"
    """Of the blocks' frozen weights. int8: 8-bit integers with a scale per row, converted back as
    they are used: half the memory of bfloat16. fp8: 8-bit floats that are computed with, of inputs
    and gradients too: faster on GPUs from Hopper on, as large as bfloat16, and less exact."""


class DataSection(Config):
    """What is trained on."""

    shards: DataPlace
    """Folder or URL of WebDataset shards, as written by `kiss3d data shard`."""
    latents: DataPlace | None = None
    """Folder or URL for cached latents and text embeddings; `<shards>.latents` when not given."""
    domains: Literal["bundle", "switch"] = "bundle"
    """What a sample is. bundle: a whole bundle; switch: one row of it, RGB or normals, named in the
    prompt, so that a bundle gives two. The adapter draws as it was trained."""
    global_batch: Positive
    """Samples per optimizer step over all workers; part of the experiment, not of the hardware."""
    on_corrupt: OnCorrupt = "stop"
    """A sample that is missing or damaged ends the run; or another takes its place, the same for
    any number of workers, and data/skipped_samples counts it. So with all samples of a tar that is
    missing or damaged as it is to be encoded."""
    prefetch: Positive = 8
    """Samples that each worker reads ahead of the step that it prepares."""
    readers: Positive = 2
    """Threads per worker that read them; over a network more of them hide its delay. Where whole
    parts train on thousands of bundles, they are processes."""
    resident: bool = False
    """Read the whole training split at the start, keep it on each worker's device, and draw there
    what is random: other numbers than when samples are streamed. For small models, whose steps are
    shorter than reading their samples would take. What it takes is not part of
    engine.memory_budget_gib."""
    cache: Path | None = None
    """Folder on each machine's own disk for latents read over the network; none when not given."""
    cache_gb: Annotated[Number, Field(gt=0)] = 50.0
    """Size of that folder, in 10^9 bytes; what was used longest ago is dropped first."""


class AdapterSection(Config):
    """Which linears of the transformer get a LoRA, and its size."""

    rank: Positive = 64
    """Rank of every adapted linear."""
    alpha: Annotated[Number, Field(gt=0)] | None = None
    """The update is scaled by alpha / rank; the rank itself (scale 1) when not given."""
    targets: Literal["attention", "all-linear"] | Endings = "all-linear"
    """attention: the projections of every block; all-linear: these and the MLPs; or module name
    endings such as `attn.to_q`."""
    init_from: Path | None = None
    """A LoRA in diffusers' layout, a file or its folder, of the same rank, alpha and linears, whose
    weights are the start; the optimizer, the schedule and the steps begin anew."""

    @property
    def resolved_alpha(self) -> float:
        """Alpha as it is used and written into the adapter file."""
        return float(self.rank if self.alpha is None else self.alpha)


class ObjectiveSection(Config):
    """Rectified flow: which noise levels are trained, and how."""

    timesteps: Literal["logit_normal", "uniform"] = "logit_normal"
    """Distribution of the timestep in (0, 1) before the shift."""
    logit_mean: Number = 0.0
    """Mean of the normal variable behind logit_normal."""
    logit_std: Annotated[Number, Field(gt=0)] = 1.0
    """Standard deviation of the normal variable behind logit_normal."""
    shift: Literal["auto", "none"] | Annotated[Number, Field(gt=0)] = "auto"
    """Moves timesteps toward noise. auto: by the number of image tokens, as FLUX.1's scheduler
    does; a number: that factor e^mu for any size (FLUX.1's is 3.16 at 4096 tokens and 6.32 at
    8192); none: not at all, as 1 would."""
    weighting: Literal["none", "sigma_sqrt", "cosmap"] = "none"
    """Weight of a sample's loss by its noise level s. sigma_sqrt: 1 / s^2, which little noise
    dominates; cosmap: 2 / (pi (1 - 2 s + 2 s^2)). Held-out losses are never weighted."""
    guidance: Number = 1.0
    """Guidance fed to a guidance-distilled model; 1.0 trains the conditional velocity itself."""
    caption_dropout: Share = 0.1
    """Share of samples whose caption is left out; the sentence that asks for a bundle remains."""


class OptimizerSection(Config):
    """AdamW on the fp32 adapter weights, and the learning rate as a function of the step."""

    lr: Annotated[Number, Field(gt=0)] = 1e-4
    """Peak learning rate."""
    warmup_steps: Annotated[Integer, Field(ge=0)] = 0
    """Steps over which the learning rate rises linearly."""
    schedule: Literal["constant", "cosine"] = "constant"
    """What follows the warm-up; cosine falls to zero at run.steps."""
    betas: tuple[Share, Share] = (0.9, 0.99)
    """Decay rates of the two Adam moments."""
    eps: Annotated[Number, Field(gt=0)] = 1e-8
    """Adam's epsilon."""
    weight_decay: Annotated[Number, Field(ge=0)] = 1e-4
    """Decoupled weight decay."""
    max_grad_norm: Annotated[Number, Field(gt=0)] = 1.0
    """Gradients are clipped to this global norm."""
    ema_decay: Annotated[Number, Field(gt=0, lt=1)] | None = None
    """Keep a moving average of the weights, of which this much remains in a step (0.999 remembers
    about 1000 of them); held-out losses are then the average's, and it gets an adapter file of its
    own. None when not given."""


class EngineSection(Config):
    """How the workers share the work."""

    kind: Literal["deepspeed", "ddp"] = "deepspeed"
    """DeepSpeed ZeRO, or PyTorch's plain DistributedDataParallel for comparison."""
    zero_stage: Annotated[Integer, Field(ge=0, le=3)] = 1
    """What ZeRO shards: 1 optimizer states, 2 also gradients, 3 also the weights, frozen ones
    included (slower; for a base that does not fit one device)."""
    compile: Literal["auto"] | bool = "auto"
    """Compile each kind of block with torch.compile; auto: on GPUs. Costs half a minute at the
    start."""
    cuda_graphs: bool = False
    """Record the model's forward and backward pass at the first step and replay them on GPUs: for
    small models, whose kernels take less time than their launch. Plain DDP only, with one
    forward pass per worker and step."""
    memory_budget_gib: Literal["auto"] | Annotated[Number, Field(gt=0)] = "auto"
    """Device memory of a worker that base.gradient_checkpointing=auto may fill; auto: what is free
    on its GPU at the start."""
    bucket_elements: Positive | None = None
    """Elements per reduction bucket; an eighth of the adapter when not given. DeepSpeed's own
    default (5e8) exceeds a whole adapter, so that nothing would overlap with the backward pass."""

    def compiles_on(self, device: str) -> bool:
        """Whether blocks are compiled on a kind of device, e.g. "cuda"."""
        return device == "cuda" if self.compile == "auto" else self.compile

    def records_on(self, device: str) -> bool:
        """Whether the model's passes are recorded on a kind of device."""
        return self.cuda_graphs and device == "cuda"

    def bucket_of(self, num_trainable: int) -> int:
        """Elements per reduction bucket for so many trainable weights."""
        return self.bucket_elements or max(1, num_trainable // 8)

    @property
    def takes_weights_apart(self) -> bool:
        """Whether frozen weights are sharded, too (ZeRO-3)."""
        return self.kind == "deepspeed" and self.zero_stage == 3


class ScalingSection(Config):
    """Workers that Ray Train starts."""

    workers: Positive = 1
    """Number of training processes."""
    min_workers: Positive | None = None
    """Start, and go on after a machine is lost, with any number from here to `workers` that the
    cluster can place; the global batch and the losses stay the same. Exactly `workers` when not
    given."""
    use_gpu: bool = False
    """One GPU per worker, else the CPU."""
    cpus_per_worker: Positive = 1
    """CPU cores that each worker reserves and may use."""
    micro_batch: Positive = 1
    """Samples per forward pass and worker; gradients accumulate up to data.global_batch."""
    max_failures: Annotated[Integer, Field(ge=-1)] = 1
    """How often crashed workers are restarted from the newest checkpoint; -1 without limit."""

    @property
    def fewest(self) -> int:
        """Workers that a run does not start without."""
        return self.min_workers or self.workers


class CheckpointSection(Config):
    """When training state is saved. A final checkpoint is always written."""

    every: Positive = 500
    """Optimizer steps between checkpoints."""
    keep: Positive = 3
    """Newest checkpoints that are kept."""


class ValidationSection(Config):
    """Held-out loss at fixed noise levels with fixed noise, comparable between runs."""

    every: Annotated[Integer, Field(ge=0)] = 500
    """Optimizer steps between validations; 0 validates only at the end."""
    samples: Annotated[Integer, Field(ge=0)] = 32
    """Samples of the validation split that are used; 0 switches validation off."""
    sigmas: Annotated[tuple[Sigma, ...], Field(min_length=1)] = (0.1, 0.3, 0.5, 0.7, 0.9)
    """Noise levels, each evaluated on every sample."""


class SamplesSection(Config):
    """Bundles drawn beside the training, always from the same prompts and noise."""

    every: Annotated[Integer, Field(ge=0)] = 0
    """Optimizer steps between rounds; 0 draws only at the end."""
    held_out: Annotated[Integer, Field(ge=0)] = 0
    """Captions of the validation split that are drawn, its first ones; the drawings are compared
    with the bundles that the captions belong to."""
    prompts: tuple[Prompt, ...] = ()
    """Prompts that are drawn too."""
    seed: Annotated[Integer, Field(ge=0)] = 0
    """Seed of the first drawing; the next one's is one more."""
    steps: Positive = 20
    """Euler steps of a drawing."""
    guidance: Annotated[Number, Field(ge=0)] = 3.5
    """Embedded guidance of a drawing."""
    reconstruct: bool = False
    """Also make a mesh of every drawing that is a valid bundle, and compare it with the drawing
    and, for a held-out caption, with the mesh of its bundle."""
    cpus: Annotated[Number, Field(gt=0)] = 1
    """CPU cores that a round reserves, beside those of the workers."""
    gpus: Annotated[Number, Field(ge=0, le=1)] = 0
    """A GPU, or the share of one, that a round reserves; 0 draws on the CPU. Where all are taken, a
    round waits until the workers have ended, and the newest weights are drawn with."""

    @property
    def num_drawings(self) -> int:
        """Drawings per round if the validation split is large enough; without any there is none."""
        return self.held_out + len(self.prompts)


class TrackingSection(Config):
    """Where metrics go."""

    uri: str = "sqlite:///mlruns.db"
    """MLflow tracking server or database."""
    experiment: str = "kiss3d"
    """MLflow experiment."""
    run_name: str | None = None
    """Name of the MLflow run; the name of run.dir when not given."""


class TrainConfig(Config):
    """A training recipe."""

    run: RunSection
    base: BaseSection
    data: DataSection
    adapter: AdapterSection = AdapterSection()
    full: FullSection | None = None
    """Whole parts to train; an adapter trains when it is not given."""
    objective: ObjectiveSection = ObjectiveSection()
    optimizer: OptimizerSection = OptimizerSection()
    engine: EngineSection = EngineSection()
    scaling: ScalingSection = ScalingSection()
    checkpoint: CheckpointSection = CheckpointSection()
    validation: ValidationSection = ValidationSection()
    samples: SamplesSection = SamplesSection()
    tracking: TrackingSection = TrackingSection()

    @model_validator(mode="after")
    def _weights_stay_whole(self) -> Self:
        if self.engine.takes_weights_apart and self.base.quantize != "none":
            raise ValueError("base.quantize needs engine.zero_stage 0, 1 or 2")
        if self.engine.takes_weights_apart and self.optimizer.ema_decay is not None:
            raise ValueError("optimizer.ema_decay needs engine.zero_stage 0, 1 or 2")
        return self

    @model_validator(mode="after")
    def _whole_parts_train_alone(self) -> Self:
        if self.full is None:
            return self
        if self.adapter != AdapterSection():
            raise ValueError("give adapter or full, not both")
        if self.engine.kind != "ddp":
            raise ValueError("full needs engine.kind=ddp")
        if self.base.quantize != "none":
            raise ValueError("full needs base.quantize=none")
        if self.data.on_corrupt != "stop":
            raise ValueError("full needs data.on_corrupt=stop")
        if self.data.domains != "bundle":
            raise ValueError("full needs data.domains=bundle")
        if self.samples.num_drawings:
            raise ValueError("full draws no samples")
        return self

    @model_validator(mode="after")
    def _resident_data_is_sound(self) -> Self:
        if self.data.resident and self.full is not None:
            raise ValueError("data.resident is for adapters; full keeps its data in memory anyway")
        if self.data.resident and self.data.on_corrupt != "stop":
            raise ValueError("data.resident needs data.on_corrupt=stop")
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        fewest, most = self.scaling.fewest, self.scaling.workers
        if fewest > most:
            raise ValueError(
                f"scaling.min_workers ({fewest}) is more than scaling.workers ({most})"
            )
        for workers in range(most, fewest - 1, -1):
            per_pass = self.scaling.micro_batch * workers
            if self.data.global_batch % per_pass:
                raise ValueError(
                    f"data.global_batch ({self.data.global_batch}) must be a multiple of "
                    f"scaling.micro_batch x scaling.workers "
                    f"({self.scaling.micro_batch} x {workers} = {per_pass})"
                )
        return self

    @model_validator(mode="after")
    def _steps_can_be_recorded(self) -> Self:
        if not self.engine.cuda_graphs:
            return self
        if self.engine.kind != "ddp":
            raise ValueError("engine.cuda_graphs needs engine.kind=ddp")
        if self.full is not None and self.full.is_vae:
            raise ValueError("engine.cuda_graphs is for transformers, not for the VAE")
        if self.data.global_batch != self.scaling.micro_batch * self.scaling.fewest:
            raise ValueError(
                "engine.cuda_graphs needs one forward pass per worker and step: set "
                "scaling.micro_batch to data.global_batch / scaling.workers"
            )
        return self

    @property
    def accumulation(self) -> int:
        """Forward passes per worker and optimizer step."""
        return self.data.global_batch // (self.scaling.micro_batch * self.scaling.workers)

    @property
    def batch_arithmetic(self) -> str:
        """How the global batch is made up, for people."""
        return (
            f"{self.data.global_batch} = {self.scaling.micro_batch} per pass x "
            f"{self.scaling.workers} workers x {self.accumulation} accumulated"
        )

    @property
    def latents_root(self) -> Place:
        """Folder or URL that holds the latent caches of this data set, one per encoder."""
        return self.data.latents or latents_beside(self.data.shards)


def latents_beside(shards: Place) -> Place:
    """Where the latents of a data set lie when nothing else is said."""
    place = absolute(shards)
    if isinstance(place, Path):
        return place.with_name(f"{place.name}.latents")
    return f"{place}.latents"
