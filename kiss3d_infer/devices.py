"""Which device to compute on."""

from dataclasses import dataclass

from kiss3d_infer.errors import InputError


@dataclass(frozen=True)
class Device:
    """A device and the floating-point type that suits Flux on it.

    Attributes:
        name: as torch spells it: "cpu", "cuda:0".
        dtype: "bfloat16" on CUDA; "float32" on the CPU, where it is the faster one.
    """

    name: str
    dtype: str


def pick_device(wanted: str = "auto") -> Device:
    """Resolve "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        InputError: no such device on this machine.
    """
    import torch

    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise InputError(f"unknown device '{wanted}'", fix="use cpu, cuda or cuda:N") from error
    if device.type == "cpu":
        return Device("cpu", "float32")
    if device.type != "cuda" or (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise InputError(f"no device '{wanted}' here", fix=f"use cpu; CUDA devices found: {found}")
    return Device(str(device), "bfloat16")


def pick_raster_device(wanted: str = "auto") -> str:
    """Resolve a device to rasterize on: "auto" takes CUDA only where nvdiffrast is installed.

    Raises:
        InputError: no such device on this machine.
    """
    from importlib.util import find_spec

    if wanted == "auto" and find_spec("nvdiffrast") is None:
        return "cpu"
    return pick_device(wanted).name
