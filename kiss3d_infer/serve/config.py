"""The server's configuration, read from configs/serve/*.yaml."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from kiss3d_infer import mini
from kiss3d_infer.config import Config
from kiss3d_infer.devices import Device, pick_device
from kiss3d_infer.errors import InputError
from kiss3d_infer.flux.models import ChosenModel, choose_model
from kiss3d_infer.reconstruct.settings import ReconstructSettings
from kiss3d_infer.serve.schema import Guidance, Steps, Tile


class HttpConfig(Config):
    """Where the API listens. It has no authentication: keep it on a trusted network."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    max_body_mib: int = Field(24, ge=1, le=1024)
    """Larger requests get 413 before they are read whole."""


class QueueConfig(Config):
    """How much waits and how much is kept."""

    max_queued: int = Field(64, ge=1)
    """Waiting tasks; further ones get 429."""
    max_finished: int = Field(1000, ge=1)
    """Finished tasks kept; the oldest go first, with their files."""
    max_asset_gib: float = Field(10.0, gt=0)
    """Files of finished tasks kept; the oldest go first."""
    drain_seconds: float = Field(30.0, ge=0)
    """At shutdown, how long running tasks may take to finish before they go back to the queue."""


class ReplicaConfig(Config):
    """How many copies of a deployment run, and what each holds."""

    replicas: int = Field(1, ge=1)
    num_cpus: float = Field(1.0, ge=0)
    """Cores that Ray sets aside per replica; a booking, no limit: rasterizing uses every core."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs per replica; a fraction shares one, none means the CPU."""

    @property
    def device(self) -> Device:
        """What a replica computes on. Ask in the replica, which sees only its own GPUs.

        Raises:
            InputError: a GPU is asked for and torch finds none.
        """
        return pick_device("cuda" if self.num_gpus else "cpu")


class GeneratorConfig(ReplicaConfig):
    """The Flux model and the settings of a request that names none."""

    base: str
    """A diffusers folder, a single safetensors file, or mini, the packaged model."""
    lora: Path | None = None
    """The adapter: a safetensors file or a folder with one; the model's own when not given."""
    lora_scale: float = 1.0
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    """Default: bfloat16 on a GPU, float32 on the CPU."""
    tile: Tile | None = None
    """This, `steps` and `guidance` default to what the model's maker recommends."""
    steps: Steps | None = None
    guidance: Guidance | None = None

    def model(self) -> ChosenModel:
        """The base with its adapter, and how a request that says nothing is drawn.

        Raises:
            InputError: see `choose_model`.
        """
        chosen = choose_model(self.base, self.lora)
        given = self.model_dump(include={"tile", "steps", "guidance"}, exclude_none=True)
        return replace(chosen, drawing=chosen.drawing.model_copy(update=given))


class ReconstructorConfig(ReplicaConfig):
    """Mesh optimisation and texturing."""

    settings: ReconstructSettings = ReconstructSettings()
    """What a request's own settings override."""


class ServeConfig(Config):
    """Everything a server needs."""

    data: Path
    """Folder of the task table and the assets, on a local disk of the one machine that serves."""
    http: HttpConfig = HttpConfig()
    queue: QueueConfig = QueueConfig()
    generator: GeneratorConfig | None = None
    """Without one the server makes meshes from bundles only."""
    reconstructor: ReconstructorConfig = ReconstructorConfig()

    def resolved(self) -> "ServeConfig":
        """The same with absolute paths, as replicas run in other folders.

        Raises:
            InputError: the model or the adapter does not exist.
        """
        update: dict[str, object] = {"data": self.data.expanduser().resolve()}
        if self.generator:
            base, lora = self.generator.base, self.generator.lora
            found: dict[str, object] = {}
            if base != mini.NAME:
                found["base"] = str(_existing(Path(base), "generator.base"))
            if lora:
                found["lora"] = _existing(lora, "generator.lora")
            update["generator"] = self.generator.model_copy(update=found)
        return self.model_copy(update=update)

    def task_types(self) -> list[str]:
        """The task types this server can work on."""
        return ["text_to_3d", "bundle_to_mesh"] if self.generator else ["bundle_to_mesh"]


def _existing(path: Path, key: str) -> Path:
    absolute = path.expanduser().resolve()
    if not absolute.exists():
        raise InputError(
            f"no such file or folder: {absolute}",
            where=key,
            fix=f"correct it, e.g. with --set {key}=PATH, or make meshes from bundles only with "
            "--set generator=null",
        )
    return absolute
