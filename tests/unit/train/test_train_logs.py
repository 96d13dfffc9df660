"""What libraries print goes into files in run.dir."""

import logging
import subprocess
import sys
from pathlib import Path

from kiss3d_train.logs import quiet_driver

_WORKER = """
import logging, os, sys
from pathlib import Path
from kiss3d_train.logs import redirect_output
print("before", flush=True)
redirect_output(Path(sys.argv[1]), "worker-3")
print("printed")
logging.getLogger("DeepSpeed").warning("warned")
os.write(2, b"from C\\n")
"""


def test_all_that_a_worker_prints_is_appended_to_its_file(tmp_path: Path) -> None:
    for _ in range(2):  # a worker that is restarted goes on in the same file
        shown = subprocess.run(
            [sys.executable, "-c", _WORKER, str(tmp_path)], capture_output=True, check=True
        )
        assert (shown.stdout, shown.stderr) == (b"before\n", b"")
    said = (tmp_path / "logs" / "worker-3.log").read_text()
    assert all(said.count(line) == 2 for line in ("worker-3 on ", "printed", "warned", "from C"))
    assert "before" not in said


def test_the_driver_shows_only_errors_of_deepspeed() -> None:
    said: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logger = logging.getLogger("DeepSpeed")
    collector = Collector()
    logger.addHandler(collector)
    try:
        quiet_driver()
        logger.setLevel(logging.INFO)  # as DeepSpeed does when it is imported
        logger.warning("no accelerator")
        logger.error("broken")
    finally:
        logger.removeHandler(collector)
        logger.filters.clear()
    assert said == ["broken"]
