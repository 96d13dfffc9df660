"""`kiss3d serve`: the application on this machine, from start to a clean stop."""

import errno
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kiss3d_infer.config import load_config
from kiss3d_infer.errors import InputError
from kiss3d_infer.serve.config import ReplicaConfig, ServeConfig

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle
    from ray.serve.schema import ApplicationStatusOverview


def serve(config_path: Path, overrides: Sequence[str] = ()) -> None:
    """Serve until Ctrl-C or SIGTERM, then let running tasks finish and stop.

    Raises:
        InputError: the configuration is wrong, the port is taken, or the machine is too small.
    """
    config = load_config(ServeConfig, config_path, overrides).config.resolved()
    check_port_is_free(config.http.host, config.http.port)
    print("Starting Ray and loading the models ...", flush=True)
    try:
        ingress = _start(config)
        print(_greeting(config), flush=True)
        _wait_for_signal()
        print(
            f"Stopping: running tasks have {config.queue.drain_seconds:g} s to finish, waiting "
            "ones stay for the next start. Ctrl-C again stops at once.",
            flush=True,
        )
        ingress.drain.remote().result()
    except KeyboardInterrupt:
        pass
    finally:
        _stop_ray()


def check_port_is_free(host: str, port: int) -> None:
    """Find out before anything is started whether the address can be listened on.

    Raises:
        InputError: the port is taken or not allowed, or the host is no address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                f"port {port} is in use by another program",
                where="http.port",
                fix=f"stop it, or choose another port, e.g. --set http.port={port + 1}",
            ) from error
        raise InputError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            where="http.host, http.port",
            fix="use an address of this machine and a port above 1023",
        ) from error


def _start(config: ServeConfig) -> "DeploymentHandle":
    # Ray reads these when it starts: a token that only this run knows, and nothing sent anywhere.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray import serve as ray_serve

    from kiss3d_infer.serve.app import APP_NAME, build

    application = build(config)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    _check_resources(config, ray.cluster_resources())
    ray_serve.start(
        proxy_location="HeadOnly",
        http_options={"host": config.http.host, "port": config.http.port},
    )
    try:
        return ray_serve.run(application, name=APP_NAME)
    except RuntimeError as error:
        raise _reason_of_failure(ray_serve.status().applications[APP_NAME]) or error from None


def _reason_of_failure(application: "ApplicationStatusOverview") -> Exception | None:
    """Ray Serve reports a replica that cannot start as text: the traceback in its status."""
    for name, deployment in application.deployments.items():
        if deployment.status == "DEPLOY_FAILED":
            *_, last = deployment.message.strip().splitlines()
            _, is_input_error, sentence = last.partition(f"{InputError.__name__}: ")
            return InputError(sentence) if is_input_error else RuntimeError(f"{name}: {last}")
    return None


def _check_resources(config: ServeConfig, available: dict[str, float]) -> None:
    """Ray would wait for ever for what the machine does not have."""
    wanted: list[ReplicaConfig] = [config.reconstructor]
    if config.generator:
        wanted.append(config.generator)
    for resource, attribute in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
        needed = sum(part.replicas * getattr(part, attribute) for part in wanted)
        present = available.get(resource, 0.0)
        if needed > present:
            raise InputError(
                f"the replicas need {needed:g} {resource}s, this machine has {present:g}",
                where=attribute,
                fix=f"lower generator.{attribute}, reconstructor.{attribute} or the replicas",
            )


def _wait_for_signal() -> None:
    """Return at Ctrl-C or SIGTERM; a second one interrupts what comes after."""
    asked = threading.Event()

    def ask(*_: object) -> None:
        asked.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)
    asked.wait()


def _greeting(config: ServeConfig) -> str:
    import ray

    url = f"http://{config.http.host}:{config.http.port}"
    request = (
        '{"type": "text_to_3d", "prompt": "a red chair"}'
        if config.generator
        else '{"type": "bundle_to_mesh", "bundle": "<base64 of a bundle PNG>"}'
    )
    logs = Path(ray._private.worker.global_worker.node.get_logs_dir_path()) / "serve"
    return (
        f"Serving {', '.join(config.task_types())} at {url}\n"
        f"  curl {url}/v1/tasks -H 'Content-Type: application/json' -d '{request}'\n"
        f"  curl {url}/v1/tasks          # the newest tasks and their links\n"
        f"  data: {config.data}   logs: {logs}\n"
        "Press Ctrl-C to stop."
    )


def _stop_ray() -> None:
    import ray

    # With nothing left to drain, Serve's own orderly shutdown only takes ten seconds longer.
    ray.shutdown()
