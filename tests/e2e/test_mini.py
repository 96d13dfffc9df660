"""The packaged model: small enough to be shipped, and what a prompt names is what is made."""

from pathlib import Path

from benchmarks.mini.colors import color_match
from kiss3d_infer import cli, mini
from kiss3d_infer.bundle import load_bundle, validate
from kiss3d_infer.evaluate import view_agreement
from kiss3d_infer.flux.models import choose_model
from kiss3d_infer.scene.load import load_mesh


def test_the_package_holds_at_most_40_mb() -> None:
    files = [file for file in mini.FOLDER.rglob("*") if file.is_file()]
    assert 20e6 < sum(file.stat().st_size for file in files) < 40e6


def test_a_prompt_becomes_a_mesh_of_its_shape_and_colour(tmp_path: Path) -> None:
    cli.text_to_3d("a red sofa with wooden legs", tmp_path / "sofa.glb")
    bundle = load_bundle(tmp_path / "sofa.bundle.png")
    assert bundle.tile == choose_model(mini.NAME).drawing.tile
    assert validate(bundle).ok
    assert view_agreement(bundle)["rows_iou"] > 0.85
    assert color_match(bundle, "red")["color_main"]
    mesh = load_mesh(tmp_path / "sofa.glb")
    assert mesh.uv is not None
    width, height, depth = (mesh.vertices.max(0).values - mesh.vertices.min(0).values).tolist()
    assert width > 1.2 * height and width > 1.2 * depth  # a sofa is long
