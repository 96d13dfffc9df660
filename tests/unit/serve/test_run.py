import socket
from pathlib import Path

import pytest

from kiss3d_infer.config import load_config
from kiss3d_infer.errors import InputError
from kiss3d_infer.flux.models import Drawing, choose_model
from kiss3d_infer.serve.config import ReconstructorConfig, ServeConfig
from kiss3d_infer.serve.run import (
    check_port_is_free,
    check_resources,
    only_server_of,
    reason_of_failure,
)

LAPTOP = Path(__file__).parents[3] / "configs/serve/laptop.yaml"


def test_a_port_in_use_is_found_before_anything_starts() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=rf"port {port} is in use.*http.port={port + 1}"):
            check_port_is_free("127.0.0.1", port)
    check_port_is_free("127.0.0.1", port)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(InputError, match=r"cannot listen on 192\.0\.2\.77:8000"):
        check_port_is_free("192.0.2.77", 8000)


def test_two_servers_never_share_a_data_folder(tmp_path: Path) -> None:
    with only_server_of(tmp_path):
        second = only_server_of(tmp_path)
        with pytest.raises(InputError, match="another server uses the data folder"):
            second.__enter__()
    with only_server_of(tmp_path):
        pass


def laptop(*overrides: str) -> ServeConfig:
    return load_config(ServeConfig, LAPTOP, overrides).config.resolved()


def test_the_shipped_recipe_serves_the_packaged_model_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = laptop()
    assert config.data == tmp_path / "serve-data"
    assert config.generator and config.generator.model() == choose_model("mini")
    assert laptop("generator=null").task_types() == ["bundle_to_mesh"]


def test_what_a_recipe_says_goes_before_what_the_model_says(tmp_path: Path) -> None:
    says = ["generator.steps=7", f"generator.lora={tmp_path}"]
    generator = laptop(*says).generator
    assert generator
    packaged, model = choose_model("mini"), generator.model()
    assert model.drawing == packaged.drawing.model_copy(update={"steps": 7})
    assert (model.base, model.lora) == (packaged.base, tmp_path)
    other = laptop(f"generator.base={tmp_path}", "generator.tile=256").generator
    assert other and other.model().drawing == Drawing(tile=256)
    assert (other.model().base, other.model().lora) == (tmp_path, None)


@pytest.mark.parametrize("key", ["base", "lora"])
def test_a_model_that_is_not_there_is_named_with_its_key(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"absent \(generator.{key}\).*--set generator=null"):
        laptop(f"generator.{key}=absent")


def test_a_machine_too_small_for_the_replicas_is_refused_instead_of_waited_for() -> None:
    config = ServeConfig(data=Path("data"), reconstructor=ReconstructorConfig(replicas=3))
    check_resources(config, {"CPU": 3.0})
    with pytest.raises(InputError, match="the replicas need 3 CPUs, this machine has 2"):
        check_resources(config, {"CPU": 2.0})
    gpu = ServeConfig(data=Path("data"), reconstructor=ReconstructorConfig(num_gpus=0.5))
    with pytest.raises(InputError, match=r"need 0\.5 GPUs, this machine has 0"):
        check_resources(gpu, {"CPU": 2.0})


@pytest.mark.parametrize(
    ("last_line", "kind"),
    [
        ("kiss3d_infer.errors.InputError: no LoRA (lora.safetensors)", InputError),
        ("torch.OutOfMemoryError: CUDA out of memory", RuntimeError),
    ],
)
def test_the_reason_why_a_replica_cannot_start_is_found(
    last_line: str, kind: type[Exception]
) -> None:
    from ray.serve.schema import ApplicationStatusOverview, DeploymentStatusOverview

    failed = DeploymentStatusOverview(
        status="DEPLOY_FAILED",
        status_trigger="REPLICA_STARTUP_FAILED",
        replica_states={},
        message=f"The deployment failed to start. Error:\nTraceback ...\n{last_line}\n",
    )
    application = ApplicationStatusOverview(
        status="DEPLOY_FAILED",
        message="",
        last_deployed_time_s=0.0,
        deployments={"Generator": failed},
    )
    reason = reason_of_failure(application)
    assert type(reason) is kind
    assert last_line.split(": ")[1] in str(reason)
