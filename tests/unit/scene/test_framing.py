import torch

from kiss3d_infer.bundle import PUBLISHED, validate
from kiss3d_infer.scene.framing import framed
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.render import render_bundle

CORNERS = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)
CUBE_FACES = torch.tensor(
    [
        [0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
        [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3],
    ],
    dtype=torch.int32,
)  # fmt: skip


def box(x: float, y: float, z: float) -> Mesh:
    return Mesh(CORNERS * torch.tensor([x, y, z]), CUBE_FACES)


def test_a_cube_is_shrunk_until_every_view_holds_it() -> None:
    cube = framed(box(3, 3, 3), PUBLISHED.cameras)
    assert 0.8 < cube.vertices.abs().max() < 1
    clipped = validate(render_bundle(cube, tile=64)).measurements["clipped_tiles"]
    assert clipped == 0
    assert validate(render_bundle(box(1, 1, 1), tile=64)).measurements["clipped_tiles"] > 0


def test_a_slim_object_keeps_its_longest_half_extent() -> None:
    assert framed(box(0.5, 2, 0.5), PUBLISHED.cameras).vertices.abs().max() == 1
