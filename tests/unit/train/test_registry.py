"""The best adapter of a run in MLflow's model registry."""

import logging
from pathlib import Path

import pytest
from tiny_training import free_port

from kiss3d_infer.mlflow_server import absolute_uri
from kiss3d_infer.tracking import Tracker
from kiss3d_train.checkpoint import Best
from kiss3d_train.registry import best_folder, register_best


def test_the_alias_follows_the_last_run_of_a_name(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = absolute_uri(f"sqlite:///{tmp_path}/runs.db")
    client, bests = MlflowClient(uri), [Best(100, 0.5), Best(70, 0.25)]
    weights = tmp_path / "pytorch_lora_weights.safetensors"
    for best in bests:
        weights.write_text(f"of step {best.step}")
        with Tracker.open(uri, "lora", "team/base: 50k") as tracker:
            tracker.log_artifact(weights, best_folder(best))
        register_best(uri, tracker.run_id, "team/base: 50k", best)
        version = client.get_model_version_by_alias("team-base- 50k", "best")
        assert version.run_id == tracker.run_id
        place = Path(version.source.removeprefix("file://"))
        assert (place / weights.name).read_text() == f"of step {best.step}"
        tags = client.get_run(tracker.run_id).data.tags
        assert (tags["kiss3d.best_step"], tags["kiss3d.best_loss"]) == (
            str(best.step),
            f"{best.loss:g}",
        )
    assert len(client.search_model_versions("name = 'team-base- 50k'")) == 2


def test_a_server_that_is_away_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="kiss3d_train.registry"):
        register_best(f"http://127.0.0.1:{free_port()}", "0" * 32, "base", Best(1, 0.5))
    assert "the best adapter was not registered" in caplog.text
