"""What clients send and receive, as types; the bounds here are the API's limits."""

import base64
import binascii
import difflib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from kiss3d_infer.reconstruct.settings import NumFaces, StartName, TextureSize
from kiss3d_infer.serve.store import Status

MAX_TILE = 1024
_ECHOED_CHARACTERS = 60
_MOST_PROBLEMS = 20


def _multiple_of_16(tile: int) -> int:
    if tile % 16:
        raise ValueError("must be a multiple of 16")
    return tile


def _decoded(value: object) -> bytes:
    if not isinstance(value, str):
        raise ValueError("must be a base64 string")
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError("must be standard base64 without line breaks") from error


Tile = Annotated[int, Field(ge=64, le=MAX_TILE), AfterValidator(_multiple_of_16)]
Base64 = Annotated[bytes, BeforeValidator(_decoded)]
Steps = Annotated[int, Field(ge=1, le=100)]
Guidance = Annotated[float, Field(ge=0, le=20)]
TaskId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Prompt = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]


class _Message(BaseModel):
    """Base of what clients send: names and JSON types must be exact, numbers finite."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class MeshSettings(_Message):
    """How the mesh is made; what is left out is the server's own setting."""

    init: StartName | None = None
    """What the optimisation starts from."""
    num_faces: NumFaces | None = None
    """Triangles wanted."""
    texture_size: Annotated[TextureSize, Field(le=4096)] | None = None
    """Side of the texture in texels; larger ones would take gigabytes that others need."""


class TextTo3D(_Message):
    """Generate a bundle from a prompt, then a mesh from the bundle."""

    type: Literal["text_to_3d"]
    prompt: Prompt
    """The object to make, in English."""
    seed: int = Field(0, ge=0, lt=2**32)
    """The same seed, settings and model give the same bundle."""
    steps: Steps | None = None
    """Denoising steps."""
    guidance: Guidance | None = None
    """Strength of the distilled guidance."""
    tile: Tile | None = None
    """Side of one view in pixels; the bundle is 4 x 2 tiles."""
    settings: MeshSettings = MeshSettings()
    force: bool = False
    """Go on although the bundle fails validation."""


class BundleToMesh(_Message):
    """Make a mesh from a 3D bundle image."""

    type: Literal["bundle_to_mesh"]
    bundle: Base64 | None = Field(None, repr=False, exclude=True)
    """A PNG or WebP bundle image, base64-encoded."""
    bundle_of: TaskId | None = None
    """Instead of `bundle`: an earlier task whose bundle is used again."""
    settings: MeshSettings = MeshSettings()
    force: bool = False
    """Go on although the bundle fails validation."""

    @model_validator(mode="after")
    def _has_one_bundle(self) -> Self:
        if (self.bundle is None) == (self.bundle_of is None):
            raise ValueError("give exactly one of 'bundle' and 'bundle_of'")
        return self


TaskRequest = Annotated[TextTo3D | BundleToMesh, Field(discriminator="type")]
TASK_TYPES: Mapping[str, type[BaseModel]] = {
    "text_to_3d": TextTo3D,
    "bundle_to_mesh": BundleToMesh,
}


class TaskResult(BaseModel):
    """What a finished task can say about its work; empty until then."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    measurements: dict[str, float] = {}
    """Figures by name; those of the bundle's validation begin with `bundle/`."""
    seconds: dict[str, float] = {}
    """Wall time by step."""
    warnings: list[str] = []


class TaskView(BaseModel):
    """A task as clients see it."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    type: str
    status: Status
    stage: str
    """What is being done, or where it failed."""
    progress: float
    """Share of the stage that is done, 0 to 1."""
    request: dict[str, Any]
    """What was asked for, without the uploaded image. A prompt's `steps`, `guidance` and `tile` are
    filled in; a null in `settings` stands for whatever the server has set when the mesh is made."""
    error: str | None
    result: TaskResult
    created: datetime
    started: datetime | None
    finished: datetime | None
    links: dict[str, str]
    """`self`, and each file that exists already: `bundle`, `mesh`."""


class TaskList(BaseModel):
    """The newest tasks first."""

    tasks: list[TaskView]


class Health(BaseModel):
    """The service answers, and how busy it is."""

    status: Literal["ok", "stopping"]
    version: str
    types: list[str]
    """Task types this server accepts."""
    tasks: dict[Status, int]
    max_queued: int


class Problem(BaseModel):
    """One wrong value of a request."""

    field: str
    problem: str


class ErrorView(BaseModel):
    """Why a request was refused."""

    error: str
    problems: list[Problem] = []


def problems_of(errors: Sequence[Mapping[str, Any]]) -> list[Problem]:
    """FastAPI's validation errors as field and problem, in words a client can act on.

    Uploaded data is never echoed, and long names and values neither; a request can hold more
    mistakes than anyone would read.
    """
    return [_problem(error) for error in errors[:_MOST_PROBLEMS]]


def _problem(error: Mapping[str, Any]) -> Problem:
    place = [
        str(part)[:_ECHOED_CHARACTERS]
        for part in error["loc"]
        if part not in ("body", "query", "path")
    ]
    kind, message = error["type"], str(error["msg"]).removeprefix("Value error, ")
    if kind == "json_invalid":
        return Problem(field="body", problem=f"not valid JSON: {error['ctx']['error']}")
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        return Problem(field="type", problem=f"must be one of {', '.join(TASK_TYPES)}")
    task_type = place.pop(0) if place and place[0] in TASK_TYPES else None
    field = ".".join(place) or "body"
    if kind == "extra_forbidden" and task_type:
        return Problem(field=field, problem=f"unknown field{_nearest(task_type, place)}")
    if kind in ("model_attributes_type", "model_type", "dict_type"):
        hint = "" if place else " (send Content-Type: application/json)"
        return Problem(field=field, problem=f"must be a JSON object{hint}")
    if kind == "missing":
        return Problem(field=field, problem="is required")
    given = _echo(error.get("input"))
    return Problem(field=field, problem=f"{message[0].lower()}{message[1:]}{given}")


def _nearest(task_type: str, place: Sequence[str]) -> str:
    known = MeshSettings if place[0] == "settings" and len(place) > 1 else TASK_TYPES[task_type]
    near = difflib.get_close_matches(place[-1], known.model_fields, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _echo(value: object) -> str:
    if not isinstance(value, str | int | float):
        return ""
    text = json.dumps(value)
    return f", not {text}" if len(text) <= _ECHOED_CHARACTERS else ""
