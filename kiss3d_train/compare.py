"""Two runs side by side: recipes, data and base, metrics at equal steps, and what they drew."""

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from kiss3d_infer.errors import InputError
from kiss3d_infer.files import check_writable, writing
from kiss3d_infer.logged_run import LoggedRun, find_run
from kiss3d_infer.scene.pictures import contact_sheet
from kiss3d_train.columns import aligned
from kiss3d_train.resume import RUN_FILE
from kiss3d_train.summary import SUMMARY_FILE

_NUM_STEPS = 4
_INPUTS = ("data", "base", "encoder", "initial_adapter")
"""Digests in the identity of a run."""
_PICTURES = (".png", ".webp", ".jpg", ".jpeg")
_MOST_PICTURES = 16
_SHEET_WIDTH = 2048
_NOT_LOGGED = "not logged"
_OF_A_DRAWING = tuple(
    f"samples.{key}" for key in ("held_out", "prompts", "seed", "steps", "guidance")
)
Row = tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """How two runs differ; as text, tables for the terminal.

    Attributes:
        recipe: (key, value of A, value of B) where the values differ.
        inputs: (what, digest of A, digest of B, "same" or "differs"); digests are cut.
        metrics: (metric, step, A, B, B - A, change in per cent) at steps that both have.
        unshared: a sentence each on metrics that only one has, or that have no common step.
        pictures: a sentence on what both drew.
    """

    runs: tuple[LoggedRun, LoggedRun]
    recipe: tuple[Row, ...]
    inputs: tuple[Row, ...]
    metrics: tuple[Row, ...]
    unshared: tuple[str, ...]
    pictures: str

    def __str__(self) -> str:
        """The tables under their headings."""
        heads = [(x, r.name, r.run_id, r.status) for x, r in zip("AB", self.runs, strict=True)]
        lines = aligned(heads)
        lines += ["", "recipe" if self.recipe else "recipe: the same"]
        lines += aligned([("", "A", "B"), *self.recipe] if self.recipe else [])
        lines += ["", "data and base"]
        lines += aligned([("", "A", "B", ""), *self.inputs])
        lines += ["", "metrics at equal steps" if self.metrics else "metrics: no common step"]
        heading = ("", "step", "A", "B", "B - A", "")
        lines += aligned([heading, *self.metrics] if self.metrics else [])
        lines += [f"  {sentence}" for sentence in self.unshared]
        return "\n".join([*lines, "", f"pictures: {self.pictures}"])


def compare_runs(run_a: str, run_b: str, uri: str, sheet: Path | None = None) -> Comparison:
    """Compare two runs of one experiment.

    Args:
        run_a, run_b: an MLflow run id, the beginning of one, or a run.dir.
        uri: MLflow server or database.
        sheet: .png to set pictures in that both runs uploaded under the same name.

    Raises:
        InputError: a run cannot be found or the two belong to different experiments.
    """
    if sheet is not None:
        _check_sheet(sheet)
    runs = find_run(uri, _run_id(run_a)), find_run(uri, _run_id(run_b))
    if runs[0].experiment != runs[1].experiment:
        raise InputError(
            f"the runs belong to different experiments, {runs[0].experiment!r} and "
            f"{runs[1].experiment!r}",
            fix="compare runs of one experiment",
        )
    files = runs[0].files(), runs[1].files()
    with tempfile.TemporaryDirectory(prefix="kiss3d-compare-") as scratch:
        identities = [
            _identity(run, of_run, Path(scratch)) for run, of_run in zip(runs, files, strict=True)
        ]
        metrics = _metrics(*runs)
        recipe = _recipe(runs[0].params, runs[1].params)
        return Comparison(
            runs=runs,
            recipe=recipe,
            inputs=_inputs(*identities),
            metrics=metrics,
            unshared=_unshared(*runs, {metric for metric, *_ in metrics}),
            pictures=_pictures(runs, files, sheet, Path(scratch), _unequal_cells(recipe)),
        )


def _check_sheet(sheet: Path) -> None:
    if sheet.suffix.lower() != ".png":
        raise InputError("a contact sheet is written as .png", where=sheet)
    check_writable(sheet)


def _run_id(run: str) -> str:
    """The MLflow run that a run.dir names, or what was given."""
    folder = Path(run)
    if not folder.is_dir():
        return run
    for name, key in ((SUMMARY_FILE, "run_id"), (RUN_FILE, "tracking_run")):
        if (folder / name).is_file():
            try:
                return str(json.loads((folder / name).read_text(encoding="utf-8"))[key])
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    "this file was not written by a training run", where=folder / name
                ) from error
    raise InputError(
        f"this folder holds no run, neither {SUMMARY_FILE} nor {RUN_FILE}",
        where=folder,
        fix="give a run.dir or the id of an MLflow run",
    )


def _recipe(a: Mapping[str, str], b: Mapping[str, str]) -> tuple[Row, ...]:
    return tuple(
        (key, a.get(key, _NOT_LOGGED), b.get(key, _NOT_LOGGED))
        for key in dict.fromkeys([*a, *b])
        if a.get(key) != b.get(key)
    )


def _identity(run: LoggedRun, files: frozenset[str], scratch: Path) -> dict[str, str]:
    """What the run says of its inputs; nothing if it ended before it had read them."""
    if RUN_FILE not in files:
        return {}
    folder = scratch / run.run_id
    folder.mkdir(exist_ok=True)
    record = json.loads(run.download(RUN_FILE, folder).read_text(encoding="utf-8"))
    identity: dict[str, str] = record["identity"]
    return identity


def _inputs(a: Mapping[str, str], b: Mapping[str, str]) -> tuple[Row, ...]:
    rows = []
    for key in _INPUTS:
        digests = a.get(key) or _NOT_LOGGED, b.get(key) or _NOT_LOGGED
        if digests == (_NOT_LOGGED, _NOT_LOGGED):
            continue
        verdict = "same" if digests[0] == digests[1] else "differs"
        rows.append((key.replace("_", " "), digests[0][:12], digests[1][:12], verdict))
    return tuple(rows)


def _metrics(a: LoggedRun, b: LoggedRun) -> tuple[Row, ...]:
    rows: list[Row] = []
    for metric in sorted(a.metrics & b.metrics):
        points_a, points_b = a.points(metric), b.points(metric)
        for step in _spread(sorted(points_a.keys() & points_b.keys())):
            rows.append((metric, str(step), *_change(points_a[step], points_b[step])))
    return tuple(rows)


def _spread(steps: Sequence[int]) -> list[int]:
    """The last step, and a few before it at even distances."""
    places = {len(steps) * k // _NUM_STEPS - 1 for k in range(1, _NUM_STEPS + 1)}
    return [steps[place] for place in sorted(places) if place >= 0]


def _change(a: float, b: float) -> Row:
    is_relative = a != 0 and math.isfinite(a) and math.isfinite(b)
    per_cent = f"{(b - a) / abs(a):+.1%}" if is_relative else ""
    return f"{a:.5g}", f"{b:.5g}", f"{b - a:+.4g}", per_cent


def _unshared(a: LoggedRun, b: LoggedRun, compared: set[str]) -> tuple[str, ...]:
    groups = {
        "only A has logged": a.metrics - b.metrics,
        "only B has logged": b.metrics - a.metrics,
        "at no common step": (a.metrics & b.metrics) - compared,
    }
    return tuple(f"{what}: {', '.join(sorted(keys))}" for what, keys in groups.items() if keys)


def _unequal_cells(recipe: Sequence[Row]) -> str:
    """A warning where equal cells of contact sheets were not drawn alike."""
    keys = [key for key, *_ in recipe if key in _OF_A_DRAWING]
    return f"; their cells were drawn with different {', '.join(keys)}" if keys else ""


def _pictures(
    runs: tuple[LoggedRun, LoggedRun],
    files: tuple[frozenset[str], frozenset[str]],
    sheet: Path | None,
    scratch: Path,
    warning: str,
) -> str:
    a, b = ({f for f in some if PurePosixPath(f).suffix.lower() in _PICTURES} for some in files)
    both = sorted(a & b)
    if not both:
        counts = f"A has logged {len(a)}, B {len(b)}, none under the same name"
        reason = counts if a or b else "neither run has logged any"
        return reason if sheet is None else f"{reason}; {sheet} was not written"
    if sheet is None:
        found = f"{len(both)} under the same name in both"
        return f"{found}; --out page.png sets them side by side{warning}"
    shown = both[-_MOST_PICTURES:]
    cells = []
    for name in shown:
        for letter, run in zip("AB", runs, strict=True):
            folder = scratch / letter
            folder.mkdir(exist_ok=True)
            with Image.open(run.download(name, folder)) as picture:
                cells.append((f"{letter} {run.name}: {name}", picture.convert("RGB")))
    with writing(sheet) as aside:
        contact_sheet(cells, columns=2, width=_SHEET_WIDTH).save(aside)
    return f"{len(shown)} of {len(both)} under the same name in both: {sheet}{warning}"
