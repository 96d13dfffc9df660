"""Write the measured table into the model card of kiss3d-mini.

python -m benchmarks.mini.card benchmarks/results/mini.json
"""

import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from kiss3d_infer import mini
from kiss3d_infer.errors import InputError
from kiss3d_infer.files import writing

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
"""Between these two lines of the card stands what this module writes."""
_SHARES = (
    ("class of the prompt, told by a network trained on exact renders", "class_network", 0.70),
    ("class of the prompt, of the nearest exact silhouettes and colour", "class_nearest", None),
    ("colour of the prompt is the main colour", "color_main", 0.85),
    ("silhouettes of RGB and normal row, IoU", "rows_iou", 0.95),
    ("front and mirrored back, IoU", "mirror_iou/0-180", 0.90),
    ("left and mirrored right, IoU", "mirror_iou/90-270", 0.90),
    ("passes `validate`", "valid", None),
)
_COMMANDS = (("generate", "bundle", 12), ("text-to-3d", "GLB", 45))


def table(report: dict[str, Any]) -> str:
    """What a results' file of `python -m benchmarks.mini` says, as a table in Markdown."""
    means = report["mean"]
    rows: list[tuple[str, ...]] = [
        (name, _bar(bar), _share(means["drawn"], key), _share(means["exact"], key))
        for name, key, bar in _SHARES
    ]
    agrees = (_share(means[section], "agrees") for section in ("mesh", "exact_mesh"))
    rows.append(("mesh whose silhouettes agree with the bundle by 0.9", _bar(0.8), *agrees))
    vae = [f"{means['vae'][f'psnr/{row}']['mean']:.1f}" for row in ("rgb", "normal")]
    rows.append(("VAE alone, PSNR of RGB / normals in dB", _bar(34), "", " / ".join(vae)))
    if packed := report.get("packed"):
        value = f"{mean(row['psnr'] for row in packed):.1f} ({len(packed)})"
        rows.append(("packed against unpacked weights, PSNR in dB", _bar(30), value, ""))
    rows += [row for command in _COMMANDS for row in _costs(report.get("cost", []), *command)]
    if size := report.get("bytes"):
        rows.append(("size in MB", "<= 40", f"{sum(size.values()) / 1e6:.1f}", ""))
    lines = ["| figure (over how many) | bar | drawn | exact renders |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", _made_by(report)])


def filled(card: str, text: str) -> str:
    """A card with the text between its two marks.

    Raises:
        InputError: the card has no marks.
    """
    before, begin, rest = card.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"the card has no lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def _costs(costs: list[dict[str, Any]], command: str, made: str, bar: int) -> list[tuple[str, ...]]:
    runs = [run for run in costs if run["command"] == command and run["exit_code"] == 0]
    if not runs:
        return []
    seconds = f"{mean(run['seconds'] for run in runs):.1f} ({len(runs)})"
    peak = f"{max(run['peak_memory_bytes'] for run in runs) / 2**30:.1f}"
    return [
        (f"prompt to {made} on 2 cores, seconds", f"<= {bar}", seconds, ""),
        (f"prompt to {made}, peak memory in GiB", "", peak, ""),
    ]


def _share(figures: dict[str, Any], key: str) -> str:
    figure = figures.get(key)
    return f"{figure['mean']:.3f} ({figure['of']})" if figure else ""


def _bar(bar: float | None) -> str:
    return "" if bar is None else f">= {bar:g}"


def _made_by(report: dict[str, Any]) -> str:
    machine, setup = report["machine"], report["setup"]
    drawing = ", ".join(f"{name} {value:g}" for name, value in setup["drawing"].items())
    judges = "; ".join(
        f"{kind} {', '.join(f'{name} {value:.3f}' for name, value in figures.items())}"
        for kind, figures in report["judges"].items()
    )
    return (
        f"Measured by `{report['command']}` on {machine['date']} ({machine['processor']}, "
        f"{machine['cores']} cores): {setup['prompts']}, {drawing}. The judges' own accuracy on "
        f"other renders: {judges}."
    )


def main(results: Path, card: Path = mini.FOLDER / "MODEL_CARD.md") -> None:
    """Fill the card."""
    text = filled(card.read_text(encoding="utf-8"), table(json.loads(results.read_bytes())))
    with writing(card) as aside:
        aside.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
