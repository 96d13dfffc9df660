"""`kiss3d serve`: the application on this machine, from start to a clean stop."""

import errno
import fcntl
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kiss3d_infer.config import load_config
from kiss3d_infer.errors import InputError
from kiss3d_infer.files import writable_folder
from kiss3d_infer.serve.config import ReplicaConfig, ServeConfig

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle
    from ray.serve.schema import ApplicationStatusOverview

_RELEASE_SECONDS = 10.0


def serve(config_path: Path, overrides: Sequence[str] = ()) -> None:
    """Serve until Ctrl-C or SIGTERM, then let running tasks finish and stop.

    Raises:
        InputError: the configuration is wrong, the port is taken, or the machine is too small.
    """
    config = load_config(ServeConfig, config_path, overrides).config.resolved()
    check_port_is_free(config.http.host, config.http.port)
    with only_server_of(config.data):
        try:
            ingress = _start(config)
            _stay_until_stopped(config, ingress)
        finally:
            _stop_ray()


def _stay_until_stopped(config: ServeConfig, ingress: "DeploymentHandle") -> None:
    try:
        print(_greeting(config), flush=True)
        _wait_for_signal()
        print(
            f"Stopping: running tasks have {config.queue.drain_seconds:g} s to finish, waiting "
            "ones stay for the next start. Ctrl-C again stops at once.",
            flush=True,
        )
        ingress.drain.remote(config.queue.drain_seconds).result()
    except KeyboardInterrupt:
        # A task that is still running when Ray stops would be held for one that killed the server.
        ingress.drain.remote(0).result(timeout_s=_RELEASE_SECONDS)


@contextmanager
def only_server_of(data: Path) -> Iterator[None]:
    """Hold the data folder: two servers would take each other's running tasks for abandoned.

    Raises:
        InputError: another server holds it, or it cannot be written.
    """
    with (writable_folder(data) / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"another server uses the data folder {data}",
                where="data",
                fix="stop it, or choose another folder, e.g. --set data=other-data",
            ) from error
        yield


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

    print("Starting Ray ...", flush=True)
    application = build(config)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    session = ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    check_resources(config, ray.cluster_resources())
    logs = Path(session.address_info["session_dir"]) / "logs" / "serve"
    print(f"Loading the models; logs: {logs}", flush=True)
    ray_serve.start(
        proxy_location="HeadOnly",
        http_options={"host": config.http.host, "port": config.http.port},
    )
    try:
        return ray_serve.run(application, name=APP_NAME)
    except RuntimeError as error:
        raise reason_of_failure(ray_serve.status().applications[APP_NAME]) or error from None


def reason_of_failure(application: "ApplicationStatusOverview") -> Exception | None:
    """What kept a replica from starting; Ray Serve tells only the traceback, in the status."""
    for name, deployment in application.deployments.items():
        if deployment.status == "DEPLOY_FAILED":
            *_, last = deployment.message.strip().splitlines()
            _, is_input_error, sentence = last.partition(f"{InputError.__name__}: ")
            return InputError(sentence) if is_input_error else RuntimeError(f"{name}: {last}")
    return None


def check_resources(config: ServeConfig, available: Mapping[str, float]) -> None:
    """Refuse what Ray would wait for without end.

    Args:
        config: whose replicas are to be placed.
        available: `CPU` and `GPU` of the machine, as Ray counts them.

    Raises:
        InputError: the replicas need more.
    """
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
    url = f"http://{config.http.host}:{config.http.port}"
    request = (
        '{"type": "text_to_3d", "prompt": "a red chair"}'
        if config.generator
        else '{"type": "bundle_to_mesh", "bundle": "<base64 of a bundle PNG>"}'
    )
    return (
        f"Serving {', '.join(config.task_types())} at {url}\n"
        f"  curl {url}/v1/tasks -H 'Content-Type: application/json' -d '{request}'\n"
        f"  curl {url}/v1/tasks          # the newest tasks and their links\n"
        f"  files: {config.data}\n"
        "Press Ctrl-C to stop."
    )


def _stop_ray() -> None:
    import ray

    # With nothing left to drain, Serve's own orderly shutdown only takes ten seconds longer.
    ray.shutdown()
