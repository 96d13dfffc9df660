import json
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from kiss3d_infer.errors import InputError
from kiss3d_infer.files import sha256_of
from kiss3d_infer.scene.export import save_mesh
from kiss3d_train.data.captions import caption_of, clean_name
from kiss3d_train.data.latents import LATENT
from kiss3d_train.data.shards.writer import add_sample
from kiss3d_train.data.sources import MeshItem, open_source
from kiss3d_train.data.sources.item import make_key
from kiss3d_train.data.sources.sweethome import parse_properties
from kiss3d_train.data.sources.toybox import make

TRIANGLE = "mtllib chair.mtl\nv 0 0 0\nv 2 0 0\nv 0 1 0\nv 0 0 1\nusemtl a\nf 1 2 3\nf 1 3 4\n"
CATALOGUE = """# a comment
id=Test#Library
name=Test library
license=Creative Commons  Copyright somebody
name#2=Bill 10\\u20ac
model#2=/test/bill/bill.obj
category#2=Misc
tags#2=
name#1=Chair
id#1=Test#chair
tags#1=Seat, \\
       Outdoor
category#1=Living room
model#1=/test/chair/chair.obj
modelRotation#1=1 0 0 0 0 1 0 -1 0
width#1=40
height#1=20
depth#1=10
creator#1=Someone
"""


def _library(path: Path, catalogue: str = CATALOGUE, **members: str) -> Path:
    files = {
        "PluginFurnitureCatalog.properties": catalogue,
        "test/chair/chair.obj": TRIANGLE,
        "test/chair/chair.mtl": "newmtl a\nKd 1 0 0\n",
        "test/bill/bill.obj": TRIANGLE,
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in (files | members).items():
            archive.writestr(name, text)
    return path


def test_a_folder_is_searched_with_its_subfolders(tmp_path: Path) -> None:
    for name in ("chairs/oak.glb", "chairs/oak.obj", "cup.ply", "bolt.STL"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        save_mesh(make(0).mesh(), path.with_suffix(path.suffix.lower()))
        path.with_suffix(path.suffix.lower()).rename(path)
    (tmp_path / "notes.txt").write_text("no mesh")
    source = open_source(str(tmp_path))
    items = source.items()
    assert [item.locator for item in items] == [
        "bolt.STL",
        "chairs/oak.glb",
        "chairs/oak.obj",
        "cup.ply",
    ]
    assert len({item.key for item in items}) == 4
    assert all("." not in item.key and "/" not in item.key for item in items)
    assert items[1].category == "chairs" and items[1].name == "oak"
    assert all(len(source.load(item).faces) == len(make(0).mesh().faces) for item in items)


def test_a_key_does_not_depend_on_what_else_is_there(tmp_path: Path) -> None:
    save_mesh(make(0).mesh(), tmp_path / "a.ply")
    alone = open_source(str(tmp_path)).items()[0].key
    save_mesh(make(0).mesh(), tmp_path / "A.ply")
    assert alone in {item.key for item in open_source(str(tmp_path)).items()}


def test_a_sidecar_describes_its_mesh(tmp_path: Path) -> None:
    save_mesh(make(0).mesh(), tmp_path / "x1.ply")
    sidecar = {"caption": "a purple chair", "licence": "CC0", "author": "Ada", "tags": ["seat"]}
    (tmp_path / "x1.json").write_text(json.dumps(sidecar))
    source = open_source(str(tmp_path))
    (item,) = source.items()
    item = source.describe(item)
    assert item.name == "x1"
    assert (item.caption, item.licence, item.author) == ("a purple chair", "CC0", "Ada")
    assert item.tags == ("seat",)


def test_an_item_keeps_what_its_source_calls_it_and_its_files_checksum(tmp_path: Path) -> None:
    (tmp_path / "chairs").mkdir()
    (tmp_path / "chairs/oak.obj").write_text(TRIANGLE)
    (tmp_path / "chairs/oak.json").write_text('{"name": "Oak"}')
    catalogue = CATALOGUE.replace("/test/bill/bill.obj", "/test/gone/gone.obj")
    _library(tmp_path / "test.sh3f", catalogue)
    source = open_source(str(tmp_path))
    oak, chair, gone = (source.describe(item) for item in source.items())
    assert [item.uid for item in (oak, chair, gone)] == [
        "chairs/oak.obj",
        "Test#chair",
        "/test/gone/gone.obj",
    ]
    assert oak.sha256 == chair.sha256 == sha256_of(TRIANGLE.encode())
    assert gone.sha256 is None  # there is no such file, as loading it says
    assert [source.describe(item) for item in (oak, chair, gone)] == [oak, chair, gone]


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"caption": 3}', "caption"), ('{"licens": ""}', "licence"), ("[", "JSON")],
)
def test_a_wrong_sidecar_is_named(tmp_path: Path, text: str, message: str) -> None:
    save_mesh(make(0).mesh(), tmp_path / "x.ply")
    (tmp_path / "x.json").write_text(text)
    source = open_source(str(tmp_path))
    (item,) = source.items()
    with pytest.raises(InputError, match=message) as error:
        source.describe(item)
    assert "x.json" in str(error.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere", "no such folder"),
        ("toybox:0", "toybox:100"),
        ("toybox:many", "toybox:100"),
        ("toybox:5?sed=1", "seed"),
        (__file__, "not a source"),
    ],
)
def test_an_unknown_source_is_refused_with_the_known_forms(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_source(spec)


def test_a_folder_without_meshes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no meshes"):
        open_source(str(tmp_path)).items()


def test_a_library_lists_its_models(tmp_path: Path) -> None:
    chair, bill = open_source(str(_library(tmp_path / "test.sh3f"))).items()
    assert (chair.name, chair.category, chair.tags) == ("Chair", "Living room", ("Seat", "Outdoor"))
    assert (chair.source, chair.licence, chair.author) == (
        "Test library",
        "Creative Commons",
        "Someone",
    )
    assert bill.name == "Bill 10\u20ac" and bill.author is None
    assert chair.key.startswith("test-chair-") and bill.key != chair.key


def test_a_model_is_turned_and_scaled_as_catalogued(tmp_path: Path) -> None:
    source = open_source(str(_library(tmp_path / "test.sh3f")))
    chair, bill = (source.load(item) for item in source.items())
    assert (chair.vertices.amax(0) - chair.vertices.amin(0)).tolist() == pytest.approx([40, 20, 10])
    # (x, y, z) becomes (x, z, -y): the corner that was up points back.
    assert chair.vertices.amin(0)[2].item() == pytest.approx(-10)
    assert (bill.vertices.amax(0) - bill.vertices.amin(0)).tolist() == [2, 1, 1]
    assert chair.materials[0].base_color == pytest.approx((1, 0, 0), abs=0.01)


def test_a_folder_holds_libraries_too(tmp_path: Path) -> None:
    _library(tmp_path / "test.sh3f")
    save_mesh(make(0).mesh(), tmp_path / "x.ply")
    source = open_source(str(tmp_path))
    items = source.items()
    assert [item.name for item in items] == ["Chair", "Bill 10\u20ac", "x"]
    assert torch.isfinite(source.load(items[0]).vertices).all()


def test_folders_of_other_names_have_other_keys(tmp_path: Path) -> None:
    keys = set()
    for name in ("first/A", "second/B", "third/A"):
        (tmp_path / name).mkdir(parents=True)
        save_mesh(make(0).mesh(), tmp_path / name / "chair.ply")
        keys |= {item.key for item in open_source(str(tmp_path / name)).items()}
    # The folder's own name counts, and not where it lies: keys are the same on every machine.
    assert len(keys) == 2


def _fingerprints(folder: Path) -> list[str]:
    source = open_source(str(folder))
    return [source.fingerprint(item) for item in source.items()]


@pytest.mark.parametrize("edited", ["a.obj", "a.json", "chair.mtl", "textures/oak wood.png"])
def test_a_fingerprint_tells_an_edited_mesh(tmp_path: Path, edited: str) -> None:
    (tmp_path / "textures").mkdir()
    (tmp_path / "a.obj").write_text(TRIANGLE)
    (tmp_path / "b.obj").write_text(TRIANGLE.partition("\n")[2])  # without its materials
    (tmp_path / "chair.mtl").write_text("newmtl a\n  map_Kd textures/oak wood.png\n")
    (tmp_path / "textures/oak wood.png").write_bytes(b"oak")
    before = _fingerprints(tmp_path)
    (tmp_path / edited).write_text("# another content")
    after = _fingerprints(tmp_path)
    assert after[0] != before[0] and after[1] == before[1]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.gltf", b'{"images": [{"uri": "data:image/png;base64,AA=="}, {"uri":"t.png"}]}'),
        ("a.glb", b'glTF\2\0\0\0\0\0\0\0\0\0\0\0JSON{"images": [{"uri": "t.png"}]}'),
        ("a.ply", b"ply\nformat ascii 1.0\ncomment TextureFile t.png\r\nend_header\n"),
    ],
)
def test_a_fingerprint_tells_an_edited_texture(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    missing = _fingerprints(tmp_path)
    (tmp_path / "t.png").write_bytes(b"oak")
    oak = _fingerprints(tmp_path)
    (tmp_path / "t.png").write_bytes(b"ash")
    ash = _fingerprints(tmp_path)
    assert len({missing[0], oak[0], ash[0]}) == 3
    (tmp_path / "other.png").write_bytes(b"of nobody")
    assert _fingerprints(tmp_path) == ash


def test_a_fingerprint_reads_nothing_outside_the_meshs_folder(tmp_path: Path) -> None:
    folder = tmp_path / "meshes"
    folder.mkdir()
    (folder / "a.obj").write_text(TRIANGLE.replace("chair.mtl", "../chair.mtl"))
    before = _fingerprints(folder)
    (tmp_path / "chair.mtl").write_text("newmtl a\n")
    assert _fingerprints(folder) == before


def test_another_version_may_draw_other_toys(monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source("toybox:1")
    (item,) = source.items()
    before = source.fingerprint(item)
    monkeypatch.setattr("kiss3d_train.data.sources.toybox.__version__", "99.0")
    assert source.fingerprint(item) != before


def test_a_fingerprint_tells_an_edited_model_of_a_library(tmp_path: Path) -> None:
    def fingerprints(name: str, catalogue: str = CATALOGUE, **members: str) -> list[str]:
        (tmp_path / name).mkdir()
        _library(tmp_path / name / "test.sh3f", catalogue, **members)
        source = open_source(str(tmp_path / name))
        return [source.fingerprint(item) for item in source.items()]

    chair, bill = fingerprints("before")
    assert fingerprints("same") == [chair, bill]
    turned = fingerprints("turned", CATALOGUE.replace("width#1=40", "width#1=41"))
    assert turned[0] != chair and turned[1] == bill
    painted = fingerprints("painted", **{"test/chair/chair.mtl": "newmtl a\nKd 0 1 0\n"})
    assert painted[0] != chair and painted[1] == bill


@pytest.mark.parametrize("names", [("v1.sh3f", "v2.sh3f"), ("v1/a.sh3f", "v2/a.sh3f")])
def test_two_versions_of_a_library_have_different_keys(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        _library(tmp_path / name)
    source = open_source(str(tmp_path))
    items = source.items()
    assert len(items) == len({item.key for item in items}) == 4
    assert len(source.load(items[3]).faces) == 2


def test_the_longest_key_fits_a_tar_with_the_longest_extensions(tmp_path: Path) -> None:
    key = make_key("n" * 300, "m" * 300, unique="x")
    extensions = (LATENT, "bundle.webp", "json")
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        add_sample(archive, key, dict.fromkeys(extensions, b"x"))
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert archive.getnames() == [f"{key}.{extension}" for extension in extensions]


def test_members_never_leave_the_temporary_folder(tmp_path: Path) -> None:
    catalogue = CATALOGUE.replace("/test/bill/bill.obj", "../../evil/evil.obj")
    (tmp_path / "in").mkdir()
    traps = {"../../evil/evil.obj": TRIANGLE, "test/chair/..\\..\\up.txt": "out"}
    path = _library(tmp_path / "in/test.sh3f", catalogue, **traps)
    source = open_source(str(path))
    before = {*tmp_path.rglob("*"), *tmp_path.parent.iterdir()}
    for item in source.items():
        source.load(item)
    assert before == {*tmp_path.rglob("*"), *tmp_path.parent.iterdir()}


def test_a_bomb_in_a_library_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kiss3d_train.data.sources.sweethome.MAX_MODEL_BYTES", 10)
    source = open_source(str(_library(tmp_path / "test.sh3f")))
    with pytest.raises(InputError, match="too large"):
        source.load(source.items()[0])


def test_a_missing_model_is_an_input_error(tmp_path: Path) -> None:
    catalogue = CATALOGUE.replace("/test/bill/bill.obj", "/test/gone/gone.obj")
    source = open_source(str(_library(tmp_path / "test.sh3f", catalogue)))
    with pytest.raises(InputError, match="no such model"):
        source.load(source.items()[1])


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut off"])
def test_a_broken_library_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "test.sh3f").write_bytes(content)
    with pytest.raises(InputError, match="not a Sweet Home 3D"):
        open_source(str(tmp_path / "test.sh3f")).items()


def test_damage_inside_a_library_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "test.sh3f"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("PluginFurnitureCatalog.properties", CATALOGUE)
    data = bytearray(path.read_bytes())
    data[80:120] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(InputError, match="not a Sweet Home 3D"):
        open_source(str(path)).items()


def test_a_model_without_a_number_is_a_model(tmp_path: Path) -> None:
    catalogue = CATALOGUE.replace("#2", "#x").replace("#1", "#10") + "model#9=/gone/gone.obj\n"
    source = open_source(str(_library(tmp_path / "test.sh3f", catalogue)))
    assert [item.locator for item in source.items()] == ["9", "x", "10"]
    assert len(source.load(source.items()[1]).faces) == 2


def test_characters_beyond_16_bits_are_whole() -> None:
    assert parse_properties("a=\\ud83e\\ude91") == {"a": "\N{CHAIR}"}
    assert parse_properties("a=\\ud83e") == {"a": "\N{REPLACEMENT CHARACTER}"}


def test_properties_are_parsed_as_java_does() -> None:
    text = "a = b\nc:d\ne f g\n! no\n  key\\ with\\ space = x \\\n   y\nu=\\u00e9\\t|\nempty\n"
    assert parse_properties(text) == {
        "a": "b",
        "c": "d",
        "e": "f g",
        "key with space": "x y",
        "u": "\u00e9\t|",
        "empty": "",
    }


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("oakChair_02", "oak chair"),
        ("MP3 station", "MP3 station"),
        ("Sofa 3 seats", "sofa 3 seats"),
    ],
)
def test_names_are_cleaned(name: str, clean: str) -> None:
    assert clean_name(name) == clean


def _item(name: str, caption: str | None = None, tags: tuple[str, ...] = ()) -> MeshItem:
    return MeshItem("k", name, caption, "Office", tags, "Blend Swap CC-0", None, None, "1")


def test_a_caption_is_the_items_own_or_made_of_its_metadata() -> None:
    assert caption_of(_item("x", "a red chair ")) == "a red chair"
    tags = ("Blend Swap", "Seat", "SCPTS", "Office")
    assert caption_of(_item("Armchair", tags=tags)) == "an armchair. office, seat"
    assert caption_of(_item("MP3 station")) == "an MP3 station. office"
    assert caption_of(_item("Scissors")) == "scissors. office"
