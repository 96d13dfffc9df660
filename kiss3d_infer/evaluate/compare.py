"""A made mesh against the true one: every number at once."""

from contextlib import suppress
from dataclasses import dataclass

from pydantic import Field

from kiss3d_infer.bundle.layout import PUBLISHED, BundleLayout
from kiss3d_infer.config import Config
from kiss3d_infer.errors import InputError
from kiss3d_infer.evaluate.alignment import Alignment, Normalization, aligning, moved, normalizing
from kiss3d_infer.evaluate.geometry import point_metrics
from kiss3d_infer.evaluate.health import mesh_health
from kiss3d_infer.evaluate.images import (
    drawn_alike,
    picture_metrics,
    require_lpips,
    torchmetrics_images,
    view_metrics,
)
from kiss3d_infer.evaluate.points import SurfacePoints, sample_points
from kiss3d_infer.evaluate.solid import volume_iou
from kiss3d_infer.reconstruct.topology import Float64
from kiss3d_infer.scene.mesh import Mesh


class CompareOptions(Config):
    """The protocol of a comparison; the defaults are Kiss3DGen's (arXiv 2503.01370, 4.3)."""

    normalization: Normalization = "cube"
    """Each mesh by itself: its bounding box centred, the longest side to [-1, 1]; or as it is."""
    alignment: Alignment = "none"
    """Also measure after turning the made mesh: the best of 24 yaws, or that refined by ICP."""
    num_points: int = Field(16_384, ge=100, le=1_000_000)
    """Surface points of each mesh."""
    only_visible: bool = False
    """Leave out surface that cannot be seen from outside, such as the inside of CAD models."""
    seed: int = Field(0, ge=0)
    """Of the surface points."""
    volume_resolution: int | None = Field(64, ge=8, le=512)
    """Voxels along each axis; None = no volume IoU."""
    layout: BundleLayout = PUBLISHED
    """The cameras of the views."""
    view_size: int | None = Field(256, ge=16, le=2048)
    """Side of a view in pixels; None = no views."""
    pictures: bool = True
    """PSNR and SSIM of the views; needs the extra `eval`."""
    lpips: bool = False
    """LPIPS as well; needs torchvision and AlexNet's weights, too: see docs/metrics.md."""
    baked_light: bool = False
    """The made mesh's texture holds the studio light of its bundle: compare with the lit truth."""


PAPER_PROTOCOL = CompareOptions()


def compare(made: Mesh, truth: Mesh, options: CompareOptions = PAPER_PROTOCOL) -> dict[str, float]:
    """Measure a made mesh against the true one.

    Both sets of points are drawn independently, so a mesh is not quite at distance 0 from itself.

    Returns:
        `point_metrics`, `volume_iou` (left out where a mesh is open or too thin for the voxels),
        `view_metrics` and `picture_metrics` after normalization; with an alignment the same again
        as `aligned/<name>`, and `aligned/yaw` in degrees; `mesh_health` of the made mesh as
        `health/<name>`.

    Raises:
        InputError: a mesh has no surface, a library that the options call for is missing, or LPIPS
            is asked for without views.
    """
    _require_libraries(options)
    subject = _Subject.of(made, options, (options.seed, 0))
    model = _Subject.of(truth, options, (options.seed, 1))
    model = model.moved(normalizing(model.vertices, options.normalization))
    upright = subject.moved(normalizing(subject.vertices, options.normalization))
    result = _measured(upright, model, options)
    if options.alignment != "none":
        matrix, yaw = aligning(
            subject.vertices,
            subject.points,
            model.points,
            options.normalization,
            refined=options.alignment == "icp",
        )
        aligned = _measured(subject.moved(matrix), model, options)
        result |= {f"aligned/{name}": value for name, value in aligned.items()}
        result["aligned/yaw"] = yaw
    return result | {f"health/{name}": value for name, value in mesh_health(made).items()}


def _require_libraries(options: CompareOptions) -> None:
    """Fail before the work rather than after it."""
    if options.view_size is None:
        if options.lpips:
            raise InputError("LPIPS compares views", where="view_size", fix="give their size")
        return
    if options.lpips:
        require_lpips(options.view_size)
    if options.pictures:
        torchmetrics_images()


@dataclass(frozen=True)
class _Subject:
    mesh: Mesh
    points: SurfacePoints

    @classmethod
    def of(cls, mesh: Mesh, options: CompareOptions, seed: tuple[int, int]) -> "_Subject":
        points = sample_points(
            mesh, options.num_points, seed=seed, only_visible=options.only_visible
        )
        return cls(mesh, points)

    @property
    def vertices(self) -> Float64:
        """[N, 3]."""
        vertices: Float64 = self.mesh.vertices.double().numpy()
        return vertices

    def moved(self, matrix: Float64) -> "_Subject":
        return _Subject(moved(self.mesh, matrix), self.points.moved(matrix))


def _measured(made: _Subject, truth: _Subject, options: CompareOptions) -> dict[str, float]:
    result = point_metrics(made.points, truth.points)
    if options.volume_resolution is not None:
        with suppress(InputError):
            result["volume_iou"] = volume_iou(made.mesh, truth.mesh, options.volume_resolution)
    if options.view_size is not None:
        views = drawn_alike(
            made.mesh,
            truth.mesh,
            options.layout,
            options.view_size,
            baked_light=options.baked_light,
        )
        result |= view_metrics(*views)
        if options.pictures or options.lpips:
            result |= picture_metrics(views[0].rgb, views[1].rgb, lpips=options.lpips)
    return result
