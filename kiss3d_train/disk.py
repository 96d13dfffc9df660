"""What a run writes, and where, worked out before it starts."""

import math
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kiss3d_infer.bundle.layout import PUBLISHED
from kiss3d_infer.flux.base import read_config
from kiss3d_infer.mlflow_server import SQLITE
from kiss3d_train.checkpoint import checkpoints_of
from kiss3d_train.data.tile import PIXELS_PER_TOKEN
from kiss3d_train.plan import LATENT_BYTES, Plan


@dataclass(frozen=True)
class Need:
    """The bytes that something takes at most, in or below a folder that need not exist yet."""

    what: str
    folder: Path
    num_bytes: int


@dataclass(frozen=True)
class Disk:
    """A disk and all that a run writes to it.

    Attributes:
        folder: that exists, on the disk.
        free: bytes.
    """

    folder: Path
    needs: tuple[Need, ...]
    free: int

    @property
    def needed(self) -> int:
        """Bytes that the run takes at most."""
        return sum(need.num_bytes for need in self.needs)


def disks(needs: Iterable[Need]) -> list[Disk]:
    """What is needed, added up by disk."""
    by_disk: dict[int, list[Need]] = {}
    for need in needs:
        by_disk.setdefault(_disk_of(need.folder), []).append(need)
    folders = {number: _existing(some[0].folder) for number, some in by_disk.items()}
    return [
        Disk(folders[number], tuple(some), shutil.disk_usage(folders[number]).free)
        for number, some in by_disk.items()
    ]


def disk_needs(plan: Plan) -> list[Need]:
    """Everything large that a run writes on disks; logs, curves and contact sheets are small.

    A checkpoint is written aside before an old one goes. The best so far stays beside the newest
    ones, and rounds of samples keep their adapter until they are drawn, which may be at the end.
    """
    config = plan.config
    adapters = (1 + plan.has_average + _keeps_best(plan)) * _adapter_bytes(plan)
    kept = config.checkpoint.keep + _keeps_best(plan) + 1
    needs = [
        Need("checkpoints", checkpoints_of(config), kept * plan.checkpoint_bytes),
        Need("adapters", config.run.dir, adapters),
        Need("samples", config.run.dir, _sample_bytes(plan)),
        *_uploads(plan, adapters),
        *_latents(plan),
    ]
    return [need for need in needs if need.num_bytes]


def _keeps_best(plan: Plan) -> bool:
    is_measured = plan.index is None or plan.num_samples("val") > 0
    return plan.config.validation.samples > 0 and is_measured


def _adapter_bytes(plan: Plan) -> int:
    return 4 * plan.num_adapter  # float32


def _sample_bytes(plan: Plan) -> int:
    """Adapters that wait, and drawings as if PNG did not compress them."""
    samples = plan.config.samples
    if not samples.num_drawings:
        return 0
    rounds = math.ceil(plan.config.run.steps / samples.every) if samples.every else 1
    layout = PUBLISHED if plan.index is None else plan.index.layout
    num_pictures = len(layout.pictures(plan.config.data.domains))
    drawing = 3 * plan.image_tokens * PIXELS_PER_TOKEN**2 * num_pictures
    return rounds * (_adapter_bytes(plan) + samples.num_drawings * drawing)


def _uploads(plan: Plan, num_bytes: int) -> Iterator[Need]:
    """MLflow's copies, if its database lies on this machine; they lie beside it then."""
    uri = plan.config.tracking.uri
    if uri.startswith(SQLITE):
        yield Need("MLflow's copies", Path(uri.removeprefix(SQLITE)).parent, num_bytes)


def _latents(plan: Plan) -> Iterator[Need]:
    """What has to be encoded first, with a caption of its own for every sample."""
    config, root = plan.config, plan.config.latents_root
    if plan.index is None or plan.encoded is None or not isinstance(root, Path):
        return
    width = int(read_config(config.base.path, "text_encoder_2/config.json")["d_model"])
    value = 2 if config.base.dtype == "bfloat16" else 4
    each = plan.image_tokens * LATENT_BYTES + plan.text_tokens * width * value
    bundles = sum(len(shard.samples) for shard in plan.encoded.missing)
    pictures = bundles * len(plan.index.layout.pictures(config.data.domains))
    yield Need("latents and text embeddings", root, each * pictures)


def _disk_of(folder: Path) -> int:
    return _existing(folder).stat().st_dev


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there already."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
