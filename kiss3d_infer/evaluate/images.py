"""What two meshes look like from the same cameras: silhouettes, normals, and pictures."""

import importlib
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kiss3d_infer.bundle.layout import BundleLayout
from kiss3d_infer.errors import InputError
from kiss3d_infer.scene.framing import framed
from kiss3d_infer.scene.likeness import likeness
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.render import ALBEDO, STUDIO, Views, render_views

_ALEXNET = "alexnet-owt-7be5be79.pth"
_LEAST_LPIPS_SIZE = 32
"""AlexNet shrinks less to nothing."""
_HIGHEST_PSNR = 100.0  # dB; equal pictures would give infinity


def drawn_alike(
    made: Mesh, truth: Mesh, layout: BundleLayout, size: int, *, baked_light: bool = False
) -> tuple[Views, Views]:
    """Draw both meshes through a layout's cameras.

    Both are centred and scaled as one, so that all cameras see all of both and what differs in
    place or size stays different.

    Args:
        made: shown in its own colours, without shading.
        truth: likewise, or shaded if the light of `made` is baked into its texture.
        layout: gives the cameras.
        size: height and width of a view in pixels.
        baked_light: whether `made` comes from a bundle that was drawn under studio light.
    """
    both = Mesh(
        torch.cat([made.vertices, truth.vertices]),
        torch.cat([made.faces, truth.faces + len(made.vertices)]),
    )
    vertices = framed(both, layout.cameras).vertices
    made = replace(made, vertices=vertices[: len(made.vertices)])
    truth = replace(truth, vertices=vertices[len(made.vertices) :])
    light = STUDIO if baked_light else ALBEDO
    return (
        render_views(made, layout.cameras, size, lighting=ALBEDO),
        render_views(truth, layout.cameras, size, lighting=light),
    )


def view_metrics(made: Views, truth: Views) -> dict[str, float]:
    """Compare silhouettes, where coverage is above one half, and normals: see `likeness`."""
    return likeness(
        made.alpha[:, 0] > 0.5,
        truth.alpha[:, 0] > 0.5,
        made.normals.movedim(1, -1),
        truth.normals.movedim(1, -1),
    )


def picture_metrics(made: Tensor, truth: Tensor, *, lpips: bool = False) -> dict[str, float]:
    """Compare pictures [V, 3, H, W] in [0, 1], background and all.

    Args:
        made: of at least 16 pixels a side, 32 for LPIPS.
        truth: of the same size.
        lpips: whether to compute it.

    Returns:
        Means over views: `psnr` in dB, at most 100 each; `ssim` with a Gaussian window of sigma 1.5
        (Wang et al. 2004); with `lpips` also that, on AlexNet (Zhang et al. 2018).

    Raises:
        InputError: torchmetrics is missing, or what LPIPS needs is: see `require_lpips`.
    """
    library = torchmetrics_images()
    psnr = library.peak_signal_noise_ratio(
        made, truth, data_range=1.0, reduction="none", dim=(1, 2, 3)
    )
    ssim = library.structural_similarity_index_measure(made, truth, data_range=1.0)
    result = {"psnr": float(psnr.clamp(max=_HIGHEST_PSNR).mean()), "ssim": float(ssim)}
    if lpips:
        result["lpips"] = _lpips(library, made, truth)
    return result


def torchmetrics_images() -> Any:
    """torchmetrics' functions on images.

    Raises:
        InputError: torchmetrics is not installed, or beside a torchvision that does not work.
    """
    try:
        return importlib.import_module("torchmetrics.functional.image")
    except ImportError as error:
        raise InputError(
            "PSNR, SSIM and LPIPS need torchmetrics",
            fix="install the extra: pip install -c constraints.txt -e '.[eval]'",
        ) from error
    except RuntimeError as error:  # it imports torchvision where there is one
        raise _unfit_torchvision(error) from error


def require_lpips(size: int) -> None:
    """Refuse, before any work, LPIPS that could not be computed; nothing is ever downloaded.

    Args:
        size: the pictures' shorter side in pixels.

    Raises:
        InputError: the pictures are too small; torchmetrics is missing, or torchvision, whose
            AlexNet LPIPS looks through, or AlexNet's weights.
    """
    if size < _LEAST_LPIPS_SIZE:
        raise InputError(
            f"LPIPS needs views of at least {_LEAST_LPIPS_SIZE} pixels, not {size}",
            fix="draw larger ones, or leave LPIPS out",
        )
    torchmetrics_images()
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as error:
        raise _unfit_torchvision(error) from error
    if not _alexnet_weights().is_file():
        raise InputError(
            "LPIPS needs AlexNet's weights",
            where=_alexnet_weights(),
            fix=f"download https://download.pytorch.org/models/{_ALEXNET} to that place",
        )


def _unfit_torchvision(error: Exception) -> InputError:
    """A release for another torch, or a CUDA build beside a CPU one, cannot be imported."""
    return InputError(
        f"torchvision does not work here ({error})",
        fix="install the release and build that belong to the installed torch (LPIPS needs it), or "
        "uninstall it (nothing else does)",
    )


def _alexnet_weights() -> Path:
    """Where torchvision looks for them."""
    return Path(torch.hub.get_dir()) / "checkpoints" / _ALEXNET


def _lpips(library: Any, made: Tensor, truth: Tensor) -> float:
    require_lpips(min(made.shape[-2:]))
    try:
        # torchvision's reader runs what a pickle asks for; what this one takes asks for nothing.
        torch.load(_alexnet_weights(), weights_only=True)
        distance = library.learned_perceptual_image_patch_similarity(
            made.clamp(0, 1), truth.clamp(0, 1), net_type="alex", normalize=True
        )
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise InputError(
            f"these are not AlexNet's weights and nothing else ({type(error).__name__})",
            where=_alexnet_weights(),
            fix="download them again",
        ) from error
    return float(distance)
