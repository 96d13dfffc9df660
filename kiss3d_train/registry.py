"""The best adapter of a run as a version in MLflow's model registry."""

import logging
import re

from kiss3d_infer.mlflow_server import import_mlflow, new_client
from kiss3d_train.checkpoint import Best

BEST_ALIAS = "best"
_STEP_TAG = "kiss3d.best_step"
_log = logging.getLogger(__name__)


def best_folder(best: Best) -> str:
    """Of a run's artifacts: another one for another step, because versions never change."""
    return f"adapter_best/step-{best.step:08d}"


def register_best(uri: str, run_id: str, name: str, best: Best) -> None:
    """Tag a run with its best step and give the alias `best` to that adapter, uploaded already.

    The model has the name of the run, so `models:/<name>@best` is the best adapter of the last run
    of that name. A server without a registry, or one that is away, is a warning.

    Args:
        uri: as `absolute_uri` gives it.
        run_id: of the run.
        name: of the model; `/` and `:` become `-`, which MLflow asks for.
        best: what is recorded.
    """
    import_mlflow()
    model = re.sub("[/:]", "-", name)
    tags = {_STEP_TAG: str(best.step), "kiss3d.best_loss": f"{best.loss:g}"}
    try:
        client = new_client(uri)
        for key, value in tags.items():
            client.set_tag(run_id, key, value)
        if not client.search_registered_models(f"name = '{model}'"):
            client.create_registered_model(model)
        source = f"{client.get_run(run_id).info.artifact_uri}/{best_folder(best)}"
        version = client.create_model_version(model, source, run_id, tags=tags)
        client.set_registered_model_alias(model, BEST_ALIAS, version.version)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        _log.warning("the best adapter was not registered at %s: %s", uri, reason)
