"""The Ray Serve application, built from a configuration."""

from typing import Any

from ray import serve
from ray.serve import Application

from kiss3d_infer.serve.config import ReplicaConfig, ServeConfig
from kiss3d_infer.serve.deployments import Generator, Ingress, Reconstructor

APP_NAME = "kiss3d"
_INGRESS_REQUESTS_AT_ONCE = 32


def build(config: ServeConfig) -> Application:
    """Bind the deployments to each other.

    `kiss3d serve` calls it; a Ray Serve config file names it too, with the configuration as args:
    `import_path: kiss3d_infer.serve.app:build`.

    Raises:
        InputError: the model, the adapter or the data folder cannot be used.
    """
    config = config.resolved()
    reconstructor = _replicated(Reconstructor, config.reconstructor, config).bind(config)
    generator = (
        _replicated(Generator, config.generator, config).bind(config) if config.generator else None
    )
    # One replica, as it owns the queue; no core of its own, as it only waits and copies.
    ingress = serve.deployment(serve.ingress()(Ingress)).options(
        name="Ingress",
        num_replicas=1,
        max_ongoing_requests=_INGRESS_REQUESTS_AT_ONCE,
        ray_actor_options={"num_cpus": 0},
        max_constructor_retry_count=1,
    )
    return ingress.bind(config, reconstructor, generator)


def _replicated(work: type, replica: ReplicaConfig, config: ServeConfig) -> Any:
    return serve.deployment(work).options(
        num_replicas=replica.replicas,
        # A model works on one task at a time; what waits, waits in the task table.
        max_ongoing_requests=1,
        max_constructor_retry_count=1,
        graceful_shutdown_timeout_s=config.queue.drain_seconds + 10,
        ray_actor_options={"num_cpus": replica.num_cpus, "num_gpus": replica.num_gpus},
    )
