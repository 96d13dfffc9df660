"""YAML recipes as frozen, typed values: every error at once, and where each value came from."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from kiss3d_infer.errors import InputError


class Config(BaseModel):
    """Base of every configuration section: frozen, strict about names, documented by docstrings."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )


def _no_truth_value(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


Integer = Annotated[int, BeforeValidator(_no_truth_value)]
"""An int that is not given as true or false, which pydantic would take for 1 and 0."""
Number = Annotated[float, BeforeValidator(_no_truth_value)]
"""A float that is not given as true or false."""


M = TypeVar("M", bound=Config)


@dataclass(frozen=True)
class Resolved(Generic[M]):
    """A validated configuration and the origin of each value.

    Attributes:
        config: the frozen configuration.
        origins: dotted key -> "default", the file's path, or "--set".
    """

    config: M
    origins: dict[str, str]

    def to_yaml(self) -> str:
        """The configuration as YAML that `load_config` reads back."""
        return yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)

    def rows(self) -> list[tuple[str, str, str]]:
        """(dotted key, value, origin) for every leaf, in the order of the schema."""
        leaves = _leaves(self.config.model_dump(mode="json"))
        return [(key, repr(value), self.origins.get(key, "default")) for key, value in leaves]

    def values(self) -> dict[str, str]:
        """Every value as text by its dotted key."""
        return {key: value for key, value, _ in self.rows()}


def load_config(model: type[M], path: Path | None, overrides: Sequence[str] = ()) -> Resolved[M]:
    """Read a YAML file, apply `a.b=value` overrides (values are YAML too), and validate.

    Without a file, the overrides change the defaults.

    Raises:
        InputError: the file is missing or no YAML mapping, an override is malformed, or any value
            is unknown or wrong; all wrong values are reported together.
    """
    raw = {} if path is None else _read_mapping(path)
    origins = {key: str(path) for key, _ in _leaves(raw)}
    for override in overrides:
        key, value = _parse_override(override)
        _assign(raw, key, value)
        origins = {
            old: origin
            for old, origin in origins.items()
            if not (_within(old, key) or _within(key, old))
        } | {leaf: "--set" for leaf, _ in _leaves({key: value})}
    try:
        return Resolved(model.model_validate(raw), origins)
    except ValidationError as error:
        blamed = set().union(
            *(
                _givers(problem["loc"], origins) or {str(path or "--set")}
                for problem in error.errors()
            )
        )
        raise InputError(explain(error, model), where=", ".join(sorted(blamed))) from error


def _givers(place: Sequence[int | str], origins: Mapping[str, str]) -> set[str]:
    """The origins of the value at a place, of the list that it lies in, or of what it holds."""
    dotted = ".".join(map(str, place))
    return {
        origin
        for key, origin in origins.items()
        if not place or _within(dotted, key) or _within(key, dotted)
    }


def _within(dotted: str, section: str) -> bool:
    return f"{dotted}.".startswith(f"{section}.")


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """One sentence per wrong value, with the nearest known name for an unknown one."""
    sentences = []
    for problem in error.errors():
        location = [str(part) for part in problem["loc"]]
        dotted = ".".join(location) or "the file"
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(location[-1], _fields_at(model, location[:-1]), n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            sentences.append(f"unknown key '{dotted}'{hint}")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            given = "" if isinstance(problem["input"], Mapping) else f", not {problem['input']!r}"
            sentences.append(f"'{dotted}': {message[0].lower()}{message[1:]}{given}")
    return "; ".join(sentences)


def _read_mapping(path: Path) -> dict[str, Any]:
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")])
        hint = f"did you mean '{path.parent / near[0]}'?" if near else "check the path"
        raise InputError("no such configuration file", where=path, fix=hint)
    raw = _parse(path.read_bytes(), "the file", path)
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise InputError("the file must hold a mapping of keys to values", where=path)
    return raw


def _parse_override(override: str) -> tuple[str, Any]:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise InputError("an override must read key=value", where=f"--set {override}")
    return key.strip(), _parse(text, "the value", f"--set {key}")


def _parse(text: str | bytes, subject: str, where: object) -> Any:
    try:
        value = yaml.safe_load(text)
        list(_leaves({"": value}))
        return value
    except yaml.YAMLError as error:
        reason = _in_a_line(error)
        raise InputError(f"{subject} is not valid YAML: {reason}", where=where) from error
    except RecursionError as error:
        raise InputError(f"{subject} refers to itself or nests too deeply", where=where) from error


def _in_a_line(error: Exception) -> str:
    """A parser's complaint without its quotation of the text, which takes several lines."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"{error.problem} in line {mark.line + 1}, column {mark.column + 1}"
    return " ".join(str(error).split())


def _assign(raw: dict[str, Any], dotted: str, value: object) -> None:
    *parents, leaf = dotted.split(".")
    node = raw
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise InputError(f"'{parent}' holds a value, not a section", where=f"--set {dotted}")
        node = child
    node[leaf] = value


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _fields_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Names allowed in the section `path` of the model, looking through unions."""
    models = [model]
    for part in path:
        annotations = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        candidates = [c for a in annotations for c in (a, *get_args(a))]
        found = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        models = found or models
    return [name for m in models for name in m.model_fields]
