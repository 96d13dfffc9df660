"""The published checkpoint, a pickle, to safetensors, running nothing that the pickle asks for."""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kiss3d_infer.errors import InputError
from kiss3d_infer.files import check_writable, writing
from kiss3d_infer.reconstruct.lrm.config import PUBLISHED_SIZES, LrmConfig
from kiss3d_infer.reconstruct.lrm.weights import require_fit

_CONTAINER, _PREFIX = "state_dict", "lrm_generator."
_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}


def convert(checkpoint: Path, out: Path, config: LrmConfig = PUBLISHED_SIZES) -> None:
    """Write the network's weights of a Lightning checkpoint as float32 safetensors.

    Args:
        checkpoint: PRM's `final_ckpt.ckpt`; what else it holds (optimizer, losses) is left out.
        out: the .safetensors file; appears only when whole.
        config: the sizes of the network.

    Raises:
        InputError: the checkpoint cannot be read, a tensor is missing, unknown or misshapen, or
            `out` cannot be written.
    """
    from safetensors.torch import save_file

    if out.suffix != ".safetensors":
        raise InputError("the weights are saved as .safetensors", where=out)
    check_writable(out)
    if not checkpoint.is_file():
        raise InputError("no such file", where=checkpoint, fix="check the path")
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            content = _Content(archive, checkpoint)
            stored = _generator(content.load(), checkpoint)
            require_fit({name: tensor.shape for name, tensor in stored.items()}, config, checkpoint)
            weights = {name: content.tensor(tensor) for name, tensor in stored.items()}
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(
            "not a whole checkpoint of torch 1.6 or newer, which are zip files",
            where=checkpoint,
            fix="the download may be incomplete",
        ) from error
    with writing(out) as aside:
        save_file(weights, aside, metadata={"format": "pt"})


@dataclass(frozen=True)
class _Stored:
    """A tensor as the pickle describes it; its numbers lie in another entry of the archive."""

    key: str
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Inert:
    """Stands for whatever else a pickle names: takes anything, does nothing."""

    def __new__(cls, *_args: object, **_kwargs: object) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass

    def __setitem__(self, _key: object, _value: object) -> None:
        pass

    def append(self, _item: object) -> None:
        pass

    extend = add = append


class _Unpickler(pickle.Unpickler):
    """Builds plain containers, descriptions of tensors and inert placeholders, nothing else.

    Every global that a pickle can call comes from `find_class`.
    """

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "collections", "OrderedDict":
                return OrderedDict
            case "torch._utils", "_rebuild_tensor_v2":
                return self._tensor
            case "torch._utils", "_rebuild_parameter":
                return self._parameter
            case "torch", storage if storage in _DTYPES:
                return _DTYPES[storage]
        return _Inert

    def persistent_load(self, pid: Any) -> Any:
        """A storage: its entry in the archive and the type of its numbers."""
        _, dtype, key, _, _ = pid
        return str(key), dtype

    def _tensor(self, storage: Any, offset: Any, shape: Any, stride: Any, *_: object) -> _Stored:
        key, dtype = storage
        return _Stored(key, dtype, offset, tuple(shape), tuple(stride))

    def _parameter(self, tensor: Any, *_: object) -> Any:
        return tensor


class _Content:
    """The parts of a torch archive: `<root>/data.pkl`, `<root>/data/<key>`, `<root>/byteorder`."""

    def __init__(self, archive: zipfile.ZipFile, where: Path) -> None:
        self._archive, self._where = archive, where
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise InputError("a zip file, but no torch checkpoint", where=where)
        self._pickle = pickles[0]
        self._root = pickles[0].removesuffix("data.pkl")
        if f"{self._root}byteorder" in archive.namelist():
            self._require_little_endian()

    def load(self) -> Any:
        """What the pickle describes."""
        try:
            with self._archive.open(self._pickle) as file:
                return _Unpickler(file).load()
        except Exception as error:  # a broken pickle raises whatever its last operation ran into
            raise InputError(
                f"the checkpoint's pickle cannot be read: {type(error).__name__}",
                where=self._where,
                fix="the download may be incomplete",
            ) from error

    def tensor(self, stored: _Stored) -> Tensor:
        """The numbers of a tensor, as float32."""
        try:
            data = bytearray(self._archive.read(f"{self._root}data/{stored.key}"))
            flat = torch.frombuffer(data, dtype=stored.dtype)
            view = flat.as_strided(stored.shape, stored.stride, stored.offset)
        # torch checks the bounds, and raises whichever of these.
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise InputError(
                f"the numbers of a tensor are damaged: {error}",
                where=self._where,
                fix="the download may be incomplete",
            ) from error
        return view.float().contiguous()

    def _require_little_endian(self) -> None:
        if self._archive.read(f"{self._root}byteorder") != b"little":
            raise InputError("a checkpoint of a big-endian machine", where=self._where)


def _generator(content: Any, where: Path) -> dict[str, _Stored]:
    """The network's tensors by their names in the network."""
    state = content.get(_CONTAINER) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping):
        raise InputError(f"no Lightning checkpoint: it has no {_CONTAINER!r}", where=where)
    named = {
        name.removeprefix(_PREFIX): value
        for name, value in state.items()
        if isinstance(name, str) and name.startswith(_PREFIX)
    }
    if not named:
        raise InputError(
            f"no tensor of this checkpoint is called {_PREFIX}...",
            where=where,
            fix="give PRM's final_ckpt.ckpt",
        )
    return {name: value for name, value in named.items() if isinstance(value, _Stored)}
