"""A first mesh from the four RGB views of a published bundle, by the large reconstruction model."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from kiss3d_infer.bundle import layout
from kiss3d_infer.errors import InputError
from kiss3d_infer.reconstruct.cleanup import without_debris
from kiss3d_infer.reconstruct.lrm.config import PUBLISHED_SIZES, LrmConfig
from kiss3d_infer.reconstruct.lrm.extract import extract_mesh
from kiss3d_infer.reconstruct.lrm.network import Lrm
from kiss3d_infer.reconstruct.lrm.weights import load_lrm
from kiss3d_infer.reconstruct.target import Target
from kiss3d_infer.reconstruct.topology import Float32, Int32
from kiss3d_infer.scene.camera import Cameras

_CAMERA_DISTANCE = 3.5
"""Of the cameras that the model is told, in its own units."""
_SCALE = 4.5 / 4.2
"""World units per unit of the model, before the silhouettes have their say; see `solve_scale`."""
_LEAST_FACTOR, _LARGEST_FACTOR = 0.85, 1.25
_NUM_HALVINGS = 24


@dataclass(frozen=True)
class LrmStart:
    """An initial shape.

    Attributes:
        vertices: [N, 3] world units: Y up, front +Z.
        faces: [F, 3] closed and outward.
        scale: world units per unit of the model, as solved from the silhouettes.
        warnings: a sentence if the silhouettes asked for an implausible scale.
    """

    vertices: Float32
    faces: Int32
    scale: float
    warnings: tuple[str, ...] = ()


def lrm_start(
    target: Target, weights: Path, *, device: str = "cpu", config: LrmConfig = PUBLISHED_SIZES
) -> LrmStart:
    """Load the model and reconstruct once; `start_with` keeps a loaded one.

    Args:
        target: on the CPU, best at the bundle's full size: the model sees 512 pixels.
        weights: a .safetensors file, see docs/lrm.md.
        device: where the network runs, "cpu" or "cuda".
        config: the sizes of the network.

    Raises:
        InputError: as `load_lrm` and `start_with`.
    """
    _require_published(target.cameras)
    return start_with(load_lrm(weights, device=device, config=config), target)


def start_with(network: Lrm, target: Target) -> LrmStart:
    """Reconstruct with a loaded model.

    Float32 on the network's device: 1.5 GB of weights and less than 1 GB beside them.

    Args:
        network: from `load_lrm`.
        target: on the CPU.

    Raises:
        InputError: the views are not the published four, or the model finds no surface.
    """
    _require_published(target.cameras)
    device = next(network.parameters()).device
    images = _on_white(target, network.config.image_size).to(device)
    with torch.inference_mode():
        planes = network(images, camera_embedding(target.cameras).to(device))
        vertices, faces = extract_mesh(network, planes)
    # The model's world is Z-up with the front at +X: (x, y, z) there is (y, z, x) here.
    vertices = np.ascontiguousarray(vertices[:, [1, 2, 0]])
    vertices, faces = without_debris(vertices, faces)
    scale, warnings = solve_scale(vertices, target)
    return LrmStart(vertices * np.float32(scale), faces, scale, warnings)


def camera_embedding(cameras: Cameras) -> Tensor:
    """What the model is told of each camera [V, 16], in its Z-up world and at its own distance.

    Camera-to-world [3, 4] row by row with OpenGL's camera axes, then fx, fy, cx, cy over the
    image's width.
    """
    rotations, focal = cameras.rotations, cameras.focal / 2
    poses = torch.cat([rotations, rotations[:, :, 2:] * _CAMERA_DISTANCE], 2)
    poses = poses[:, [2, 0, 1]]  # (x, y, z) here is (z, x, y) there
    lens = torch.tensor([focal, focal, 0.5, 0.5]).expand(len(poses), 4)
    return torch.cat([poses.flatten(1), lens], 1)


def solve_scale(vertices: Float32, target: Target) -> tuple[float, tuple[str, ...]]:
    """World units per unit of the model: the scale at which mesh and views are equally large.

    Both fields of view are equal, so a silhouette seen from 4.5 is also that of an object 3.5 / 4.5
    as large seen from 3.5. If the model took its cameras at their word, the scale would thus be
    4.5 / 3.5 = 1.29; but it draws larger. In a public pair of a bundle and the mesh that the
    model made of it, the silhouettes agree best when the mesh is seen from 4.2, so the scale is
    about 4.5 / 4.2 = 1.07. Around this value it is solved so that the median of the eight ratios of
    silhouette extents, the mesh's to the target's, is 1; the range holds 1 and 1.29.

    Args:
        vertices: [N, 3] in world axes and the model's units.
        target: the views.

    Returns:
        The scale, and a warning if it had to be cut off at the range's end.
    """
    wanted = _drawn_extents(target.alpha[..., 0].numpy() > 0.5)
    low, high = math.log(_LEAST_FACTOR), math.log(_LARGEST_FACTOR)
    # Extents grow with the scale, so the median of their ratios does.
    for _ in range(_NUM_HALVINGS):
        middle = (low + high) / 2
        extents = _projected_extents(vertices * np.float32(_SCALE * math.exp(middle)), target)
        if np.median(extents / wanted) < 1:
            low = middle
        else:
            high = middle
    factor = math.exp((low + high) / 2)
    if _LEAST_FACTOR * 1.001 < factor < _LARGEST_FACTOR / 1.001:
        return _SCALE * factor, ()
    size = "larger" if factor < 1 else "smaller"
    return _SCALE * factor, (f"the LRM's shape is much {size} than the views show it",)


def _require_published(cameras: Cameras) -> None:
    published = layout.PUBLISHED.cameras
    if cameras != published:
        raise InputError(
            f"an LRM start needs the published layout, {_described(published)}, "
            f"but the bundle shows {_described(cameras)}",
            fix="use another start, such as carve",
        )


def _described(cameras: Cameras) -> str:
    azimuths, elevations = (
        "/".join(f"{angle:g}" for angle in angles)
        for angles in (cameras.azimuths, cameras.elevations)
    )
    return (
        f"azimuths {azimuths} at elevations {elevations}, "
        f"distance {cameras.distance:g}, field of view {cameras.fov:g}"
    )


def _on_white(target: Target, size: int) -> Tensor:
    """The views [V, 3, S, S] as the model was shown them: on white, resized, in [0, 1]."""
    views = target.rgb * target.alpha + (1 - target.alpha)
    resized = functional.interpolate(
        views.permute(0, 3, 1, 2), size=(size, size), mode="bicubic", antialias=True
    )
    return resized.clamp(0, 1)


def _drawn_extents(masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Width and height [V, 2] of silhouettes [V, S, S], in half images."""
    size = masks.shape[1]
    pixels = []
    for mask in masks:
        spans = [np.flatnonzero(mask.any(axis)) for axis in (0, 1)]
        pixels.append([np.ptp(span) + 1 if len(span) else 1 for span in spans])
    extents: NDArray[np.float64] = np.array(pixels) * (2 / size)
    return extents


def _projected_extents(vertices: Float32, target: Target) -> NDArray[np.float64]:
    """Width and height [V, 2] of a mesh's silhouettes within the images, in half images."""
    clip = target.cameras.clip(torch.from_numpy(vertices))
    places = (clip[..., :2] / clip[..., 3:]).clamp(-1, 1).double()
    extents: NDArray[np.float64] = (places.amax(1) - places.amin(1)).numpy()
    return extents
