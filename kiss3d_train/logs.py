"""Where the libraries' own messages go: into files in run.dir, and not to the terminal."""

import logging
import os
import shutil
import socket
import sys
from pathlib import Path

_DEEPSPEED = "DeepSpeed"
_RAY_TRAIN_LOGS = "ray-train-*.log"


def logs_of(run_dir: Path) -> Path:
    """Folder of what the libraries say in a run."""
    return run_dir / "logs"


def redirect_output(run_dir: Path, name: str) -> None:
    """From now on append all that this process prints to logs/<name>.log.

    That is Python's output, logging to the terminal, and what C++ libraries such as NCCL write.
    """
    folder = logs_of(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    with (folder / f"{name}.log").open("a", encoding="utf-8") as file:
        file.write(f"{name} on {socket.gethostname()}, process {os.getpid()}\n")
        file.flush()
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


def size_of_worker_logs(run_dir: Path) -> int:
    """Bytes in the logs of a run's training workers; more than before as soon as one begins."""
    return sum(log.stat().st_size for log in logs_of(run_dir).glob("worker-*.log"))


def quiet_driver() -> None:
    """Drop what DeepSpeed, which peft imports, says in this process, where nothing trains.

    Its level cannot be set: DeepSpeed sets it anew when it is imported.
    """
    logger = logging.getLogger(_DEEPSPEED)
    if not logger.filters:
        logger.addFilter(lambda record: record.levelno >= logging.ERROR)


def keep_ray_logs(run_dir: Path, since: float) -> None:
    """Copy what Ray Train wrote on this machine since a time, as `time.time` gives it, to logs/ray.

    The rest of Ray's logs, and those of other machines, stay in Ray's own folder.
    """
    import ray

    folder = logs_of(run_dir) / "ray"
    try:
        context = ray.get_runtime_context()
        session = Path(context.get_temp_dir()) / context.get_session_name() / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        for file in (session / "train").glob(_RAY_TRAIN_LOGS):
            if file.stat().st_mtime >= since:
                shutil.copy(file, folder)
    except Exception as error:  # Ray may have gone, for a reason that is told elsewhere
        logging.getLogger(__name__).warning("Ray's logs were not copied to %s: %s", folder, error)
