import subprocess
import sys
from pathlib import Path

import pytest

from kiss3d_infer import cli
from kiss3d_infer.reconstruct import ReconstructSettings


def kiss3d(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from kiss3d_train.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys, kiss3d_train.cli;"
        "heavy = {'torch', 'numpy', 'ray', 'diffusers', 'mlflow', 'deepspeed', 'pydantic'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "No such command 'nope' (see "),
        (["generate", "a chair"], "Missing option '-o' / '--out' (see "),
        (["train", "plan", "a.yaml", "--sett", "a=b"], "No such option"),
        (["train", "validate", "absent.yaml"], "no such configuration file"),
        (["reconstruct", "absent.png", "-o", "a.glb"], "no such bundle image"),
        (["generate", "a chair", "-o", "b.png", "--device", "tpu"], "device"),
        (["reconstruct", "b.png", "-o", "a.glb", "--faces", "300000"], "200000"),
        (["reconstruct", "b.png", "-o", "a.glb", "--texture-size", "9000"], "8192"),
        (["reconstruct", "b.png", "-o", "a.glb", "--init", "mesh"], "go together"),
        (["reconstruct", "b.png", "-o", "a.glb", "--lrm", "w.safetensors"], "go together"),
        (["data", "render", "--source", "toybox:1", "--out", "o", "--layout", "l.yaml"], "no such"),
        (["data", "render", "--source", "nowhere", "--out", "o"], "nowhere"),
        (["data", "verify", "pipe:cat secret"], "data is not read from 'pipe:' addresses"),
        (["data", "shard", "r", "--out", "o", "--append"], "no data set in the folder"),
        (["data", "repair", "absent"], "no data set in the folder"),
        # Refused before any model is looked for:
        (["generate", "", "-o", "b.png"], "the prompt is empty (prompt): say what to draw"),
        (["text-to-3d", "  ", "-o", "a.glb"], "the prompt is empty (prompt): say what to draw"),
        (["generate", "a chair", "-o", "b.jpg"], ".png or .webp"),
        (["generate", "a chair", "-o", "/proc/b.png"], "cannot write to the folder"),
        (["text-to-3d", "a chair", "-o", "a.fbx"], "cannot write a mesh of type"),
        (["reconstruct", "absent.png", "-o", "/proc/a.glb"], "cannot write to the folder"),
        (["convert", "pack-base", "absent", "o"], "needs model_index.json"),
        (["convert", "lrm", "absent.ckpt", "-o", "/proc/a.safetensors"], "cannot write to the"),
    ],
)
def test_bad_input_exits_with_2_and_one_sentence(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    result = kiss3d(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    *progress, sentence = result.stderr.splitlines()
    assert sentence.startswith("kiss3d: ")
    assert message in sentence
    assert not any("Usage" in line or "Traceback" in line for line in progress)


def test_help_is_printed_on_request_and_for_a_group_without_a_command() -> None:
    for arguments, code in ((["--help"], 0), (["generate", "--help"], 0), ([], 2), (["data"], 2)):
        result = kiss3d(*arguments)
        assert (result.returncode, result.stderr) == (code, "")
        assert "Usage: " in result.stdout


def test_ctrl_c_exits_with_130() -> None:
    code = (
        "import signal; from kiss3d_train import cli;"
        "cli.app.command('wait')(lambda: signal.raise_signal(signal.SIGINT)); cli.main()"
    )
    assert subprocess.run([sys.executable, "-c", code, "wait"], timeout=60).returncode == 130


def test_reconstruct_options_have_the_settings_bounds() -> None:
    schema = ReconstructSettings.model_json_schema()["properties"]
    for option, field in ((cli.Faces, "num_faces"), (cli.TextureSize, "texture_size")):
        (bounds,) = option.__metadata__
        assert (bounds.min, bounds.max) == (schema[field]["minimum"], schema[field]["maximum"])


def test_verbose_shows_the_traceback(tmp_path: Path) -> None:
    result = kiss3d("-v", "train", "validate", "absent.yaml", cwd=tmp_path)
    assert result.returncode == 2
    assert "Traceback" in result.stderr


def test_doctor_reports_every_library() -> None:
    result = kiss3d("doctor")
    assert result.returncode == 0
    for name in ("torch", "deepspeed", "mlflow", "memory", "disk"):
        assert name in result.stdout
