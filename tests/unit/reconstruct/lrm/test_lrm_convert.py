import os
import pickle
import zipfile
from collections import OrderedDict
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from kiss3d_infer.errors import InputError
from kiss3d_infer.reconstruct.lrm.convert import convert
from kiss3d_infer.reconstruct.lrm.weights import load_lrm
from kiss3d_train.cli import main

PREFIX = "lrm_generator."


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class Foreign:
    """A class that the reader must not look up, with state, items and a list in it."""

    loaded = False

    def __init__(self):
        self.items = [1, {"a": torch.ones(2)}]

    def __setstate__(self, state):
        Foreign.loaded = True
        self.__dict__.update(state)


class ForeignList(list):
    pass


class ForeignDict(dict):
    pass


def lightning_checkpoint(path, network, **more):
    state = OrderedDict((PREFIX + name, tensor) for name, tensor in network.state_dict().items())
    state["lpips.net.weight"] = torch.ones(3)
    state._metadata = {"": {"version": 1}}
    content = {
        "epoch": 3,
        "state_dict": state,
        "hyper_parameters": {"size": torch.Size([2]), "dtype": torch.float16},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(4)}}}],
    }
    torch.save(content | more, path)
    return path


def test_the_network_comes_through_unchanged_and_nothing_else(tmp_path, tiny_lrm, tiny_config):
    checkpoint = lightning_checkpoint(tmp_path / "final_ckpt.ckpt", tiny_lrm)
    convert(checkpoint, tmp_path / "lrm.safetensors", tiny_config)
    written = load_file(tmp_path / "lrm.safetensors")
    state = tiny_lrm.state_dict()
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name], state[name]) for name in state)
    loaded = load_lrm(tmp_path / "lrm.safetensors", config=tiny_config)
    assert not loaded.training
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name]) and tensor.device.type == "cpu"


def test_hostile_and_foreign_objects_in_the_pickle_do_nothing(tmp_path, tiny_lrm, tiny_config):
    marker = tmp_path / "executed"
    checkpoint = lightning_checkpoint(
        tmp_path / "c.ckpt",
        tiny_lrm,
        callbacks={Foreign: Foreign(), "list": ForeignList([1, 2]), "dict": ForeignDict(a=1)},
        hostile=Hostile(marker),
    )
    Foreign.loaded = False
    convert(checkpoint, tmp_path / "lrm.safetensors", tiny_config)
    assert not marker.exists() and not Foreign.loaded
    # The same file does all that when it is unpickled.
    torch.load(checkpoint, weights_only=False)
    assert marker.exists() and Foreign.loaded


def test_views_half_precision_and_parameters_are_read(tmp_path, tiny_lrm, tiny_config):
    state = tiny_lrm.state_dict()
    some = "transformer.layers.0.mlp.0.weight"
    tensors = {PREFIX + name: tensor.half() for name, tensor in state.items()}
    wide = torch.cat([torch.zeros(7), state[some].t().flatten()])
    tensors[PREFIX + some] = torch.nn.Parameter(wide)[7:].view(state[some].t().shape).t()
    tensors[PREFIX + "transformer.norm.bias"] = torch.nn.Parameter(torch.arange(32.0))
    checkpoint = tmp_path / "c.ckpt"
    torch.save({"state_dict": tensors}, checkpoint)
    convert(checkpoint, tmp_path / "lrm.safetensors", tiny_config)
    written = load_file(tmp_path / "lrm.safetensors")
    assert torch.equal(written[some], state[some])
    assert torch.equal(written["transformer.norm.bias"], torch.arange(32.0))
    name = "encoder.camera_embedder.0.weight"
    assert torch.equal(written[name], state[name].half().float())


def test_misfits_are_named(tmp_path, tiny_lrm, tiny_config):
    state = tiny_lrm.state_dict()
    del state["transformer.norm.bias"]
    state["transformer.extra"] = torch.ones(1)
    state["transformer.norm.weight"] = torch.ones(5)
    tensors = {PREFIX + name: tensor for name, tensor in state.items()}
    torch.save({"state_dict": tensors}, tmp_path / "c.ckpt")
    with pytest.raises(InputError) as caught:
        convert(tmp_path / "c.ckpt", tmp_path / "lrm.safetensors", tiny_config)
    for words in (
        "transformer.norm.bias is missing",
        "transformer.extra is unknown",
        "transformer.norm.weight is (5,), must be (32,)",
    ):
        assert words in caught.value.what
    assert not (tmp_path / "lrm.safetensors").exists()


def run_command(monkeypatch, capsys, *arguments):
    """Exit code, output and error of `kiss3d convert lrm`."""
    monkeypatch.setattr("sys.argv", ["kiss3d", "convert", "lrm", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code or 0, *capsys.readouterr()


def test_the_command_names_the_file_that_it_wrote(
    tmp_path, tiny_lrm, tiny_config, monkeypatch, capsys
):
    checkpoint = lightning_checkpoint(tmp_path / "final_ckpt.ckpt", tiny_lrm)
    out = tmp_path / "models" / "lrm.safetensors"
    small = partial(convert, config=tiny_config)
    monkeypatch.setattr("kiss3d_infer.reconstruct.lrm.convert.convert", small)
    assert run_command(monkeypatch, capsys, checkpoint, "-o", out) == (0, f"{out}\n", "")
    assert load_lrm(out, config=tiny_config)


def test_the_command_refuses_another_network_in_one_sentence(
    tmp_path, tiny_lrm, monkeypatch, capsys
):
    checkpoint = lightning_checkpoint(tmp_path / "final_ckpt.ckpt", tiny_lrm)
    out = tmp_path / "lrm.safetensors"
    code, _, complaint = run_command(monkeypatch, capsys, checkpoint, "-o", out)
    assert code == 2 and not out.exists()
    assert complaint.count("\n") == 1 and len(complaint) < 1000
    assert "not the LRM's weights" in complaint and " more (" in complaint
    checkpoint.write_bytes(b"no zip file")
    code, _, complaint = run_command(monkeypatch, capsys, checkpoint, "-o", out)
    assert code == 2 and complaint.startswith("kiss3d: not a whole checkpoint")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"model": {}}, "no Lightning checkpoint"),
        ([1, 2], "no Lightning checkpoint"),
        ({"state_dict": {"other.weight": torch.ones(1)}}, "no tensor"),
    ],
)
def test_other_checkpoints_are_refused(tmp_path, content, reason):
    torch.save(content, tmp_path / "c.ckpt")
    with pytest.raises(InputError, match=reason):
        convert(tmp_path / "c.ckpt", tmp_path / "lrm.safetensors")


def test_files_that_are_no_checkpoint_are_refused(tmp_path, tiny_lrm, tiny_config):
    out = tmp_path / "lrm.safetensors"
    with pytest.raises(InputError, match="no such file"):
        convert(tmp_path / "absent.ckpt", out)
    old = tmp_path / "old.ckpt"
    torch.save({"state_dict": {}}, old, _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match="zip files"):
        convert(old, out)
    cut = lightning_checkpoint(tmp_path / "cut.ckpt", tiny_lrm)
    cut.write_bytes(cut.read_bytes()[:-1000])
    with pytest.raises(InputError, match="zip files"):
        convert(cut, out, tiny_config)
    with pytest.raises(InputError, match=r"\.safetensors"):
        convert(old, tmp_path / "lrm.bin")
    assert not out.exists()


def rewritten(source, target, change):
    """Copy an archive, passing every entry's name and content through `change`."""
    with zipfile.ZipFile(source) as before, zipfile.ZipFile(target, "w") as after:
        for name in before.namelist():
            data = change(name, before.read(name))
            if data is not None:
                after.writestr(name, data)
    return target


def test_damaged_archives_are_refused(tmp_path, tiny_lrm, tiny_config):
    good = lightning_checkpoint(tmp_path / "good.ckpt", tiny_lrm)
    out = tmp_path / "lrm.safetensors"

    def refusal(change):
        bad = rewritten(good, tmp_path / "bad.ckpt", change)
        with pytest.raises(InputError) as caught:
            convert(bad, out, tiny_config)
        return caught.value.what

    garbled = b"\x80\x02" + pickle.dumps({"state_dict": 1})[2:-1]
    assert "pickle" in refusal(lambda n, d: garbled if n.endswith("data.pkl") else d)
    assert "damaged" in refusal(lambda n, d: None if n.endswith("data/0") else d)
    assert "damaged" in refusal(lambda n, d: d[:8] if n.endswith("data/0") else d)
    assert "big-endian" in refusal(lambda n, d: b"big" if n.endswith("byteorder") else d)
    assert "no torch checkpoint" in refusal(lambda n, d: None if n.endswith("data.pkl") else d)


def test_loading_takes_only_safetensors_that_fit(tmp_path, tiny_lrm, tiny_config):
    from safetensors.torch import save_file

    with pytest.raises(InputError, match=r"must be \.safetensors"):
        load_lrm(tmp_path / "final_ckpt.ckpt")
    with pytest.raises(InputError, match="no such file"):
        load_lrm(tmp_path / "absent.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no safetensors")
    with pytest.raises(InputError, match="not a readable"):
        load_lrm(broken, config=tiny_config)
    state = tiny_lrm.state_dict()
    del state["transformer.norm.bias"]
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(InputError, match=r"transformer\.norm\.bias is missing"):
        load_lrm(tmp_path / "part.safetensors", config=tiny_config)
