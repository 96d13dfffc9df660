"""A few rendered samples to caption, and what is in their descriptions."""

import json
import shutil
from pathlib import Path
from typing import Any

NUM_SAMPLES = 4


def copied_samples(rendered: Path, folder: Path, count: int = NUM_SAMPLES) -> Path:
    """The first samples of a folder, with captions that count as made of names."""
    folder.mkdir()
    for path in sorted(rendered.glob("*.json"))[:count]:
        shutil.copy(path.with_suffix(".bundle.png"), folder)
        shutil.copy(path, folder)
        redescribe(folder / path.name, caption_source={"captioner": "names"})
    return folder


def redescribe(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def described(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_bytes()) for path in sorted(folder.glob("[!.]*.json"))]
