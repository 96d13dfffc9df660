"""What of a data set is encoded already, as far as that can be seen without the base's weights."""

from dataclasses import dataclass
from pathlib import Path

from kiss3d_infer.errors import InputError
from kiss3d_train.config import TrainConfig
from kiss3d_train.data.encode import describe_encoder
from kiss3d_train.data.latents import ENCODER_FILE, Encoder, not_encoded, read_encoder
from kiss3d_train.data.shards import IndexedShard, ShardIndex


@dataclass(frozen=True)
class Encoded:
    """The state of the latents and text embeddings of a data set.

    Attributes:
        said: the state, for people.
        missing: shards that a run will encode first; none of a cache that cannot be looked at.
        is_unexpected: there are latents, but not those that the recipe needs.
    """

    said: str
    missing: tuple[IndexedShard, ...] = ()
    is_unexpected: bool = False


def encoded(config: TrainConfig, index: ShardIndex) -> Encoded:
    """Compare what is cached on this machine with what a recipe needs.

    The base's weights are compared by `run`, since that reads all of them.

    Raises:
        InputError: the base has no configuration of a VAE.
    """
    root, shards = config.latents_root, index.shards
    if not isinstance(root, Path):
        return Encoded(f"cannot be checked from here: {root} is remote")
    wanted = describe_encoder(
        config.base.path, "", index.layout, config.base.dtype, config.data.domains
    )
    fitting: list[Path] = []
    differences: list[str] = []
    for folder in sorted(path.parent for path in root.glob(f"*/{ENCODER_FILE}")):
        try:
            different = _differences(read_encoder(folder), wanted)
        except InputError as error:
            differences.append(f"{folder.name} is unusable, {error.what}")
            continue
        if different:
            differences.append(f"{folder.name} has another {', '.join(different)}")
        else:
            fitting.append(folder)
    if fitting:
        return _least_missing(fitting, index)
    if differences:
        said = f"none in {root} match, and all will be encoded anew: {'; '.join(differences)}"
        return Encoded(said, shards, is_unexpected=True)
    return Encoded(f"absent; all of {len(shards)} shards will be encoded into {root}", shards)


def _differences(found: Encoder, wanted: Encoder) -> list[str]:
    before, now = found.model_dump(), wanted.model_dump()
    return [key for key in now if key != "base" and before[key] != now[key]]


def _least_missing(folders: list[Path], index: ShardIndex) -> Encoded:
    """Of caches that differ in the base's weights at most, the one with the most shards."""
    missing_in = {folder: not_encoded(folder, index.shards) for folder in folders}
    folder, missing = min(missing_in.items(), key=lambda item: len(item[1]))
    if not missing:
        return Encoded(f"match, in {folder}; the base's weights are compared by run")
    said = f"{len(missing)} of {len(index.shards)} shards are not encoded yet ({folder})"
    return Encoded(said, tuple(missing), is_unexpected=True)
