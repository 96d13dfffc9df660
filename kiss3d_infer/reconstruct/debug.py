"""What a reconstruction went through, as pictures in a folder."""

from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from torch import Tensor

from kiss3d_infer.files import writable_folder, writing
from kiss3d_infer.reconstruct.refine import render_shape
from kiss3d_infer.reconstruct.target import Target
from kiss3d_infer.reconstruct.topology import Float32, Int32
from kiss3d_infer.scene.color import to_bytes
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.pictures import contact_sheet, turntable

_SHEET_WIDTH = 1600


class DebugFolder:
    """Writes targets.png, stage_<n>_<name>.png, losses.png, unseen.png and turntable.gif.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = writable_folder(folder)
        self._num_stages = 0

    def write_targets(self, target: Target) -> None:
        """The colours, world normals and coverage that the views were decoded to."""
        rows = [
            ("colours, spread beyond the edges", _strip(target.rgb)),
            ("world normals", _strip(_normal_colors(target.normals, target.alpha))),
            ("coverage", _strip(target.alpha.expand(-1, -1, -1, 3))),
        ]
        self._save("targets.png", contact_sheet(rows, width=_SHEET_WIDTH))

    def write_stage(self, name: str, vertices: Float32, faces: Int32, target: Target) -> None:
        """The mesh after a stage through the target's cameras, and where it differs from them."""
        drawn = render_shape(vertices, faces, target)
        difference = (drawn - target.geometry).abs().amax(-1, True)
        label = f"{name}: {len(vertices)} vertices, {len(faces)} faces"
        rows = [
            (label, _strip(_normal_colors(drawn[..., :3], drawn[..., 3:]))),
            ("largest difference of normal or coverage", _strip(difference.expand(-1, -1, -1, 3))),
        ]
        self._num_stages += 1
        sheet = contact_sheet(rows, width=_SHEET_WIDTH)
        self._save(f"stage_{self._num_stages}_{name}.png", sheet)

    def write_losses(self, losses: Mapping[str, tuple[float, ...]]) -> None:
        """A plot of the loss by step, stage after stage."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4), layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel="loss", yscale="log")
        first = 0
        for stage, values in losses.items():
            axes.plot(range(first, first + len(values)), values, label=stage)
            first += len(values)
        axes.legend()
        with writing(self._folder / "losses.png") as aside:
            figure.savefig(aside, dpi=120)

    def write_unseen(self, seen: Tensor) -> None:
        """The texture's texels [T, T, 3]: white where seen well, red where filled, grey unused."""
        self._save("unseen.png", Image.fromarray(to_bytes(seen.cpu())))

    def write_turntable(self, mesh: Mesh) -> None:
        """The finished mesh from all around."""
        turntable(mesh, self._folder / "turntable.gif")

    def _save(self, name: str, picture: Image.Image) -> None:
        with writing(self._folder / name) as aside:
            picture.save(aside)


def _normal_colors(normals: Tensor, alpha: Tensor) -> Tensor:
    """World normals times coverage [V, S, S, 3] as colours on white."""
    return ((normals + alpha) / 2 + 1 - alpha).clamp(0, 1)


def _strip(views: Tensor) -> Tensor:
    """[V, S, S, 3] side by side: [3, S, V * S]."""
    return views.permute(3, 1, 0, 2).flatten(2).clamp(0, 1).cpu()
