"""What a vision model is asked, and the strict reading of what it answers."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from kiss3d_infer.config import explain
from kiss3d_train.data.captions.names import joined

PROMPT_VERSION = "1"
"""Changes with `PROMPT`."""

PROMPT = """\
The picture shows one 3D object from several sides on a white background: its front first, then its
left, back and right side. Describe the object for someone who will draw it.

Answer with a JSON object of two keys:
- "clause": one phrase without a full stop that names the object with its main colours, materials \
and parts, e.g. "a small stone well with a wooden roof and grass around it".
- "attributes": two to eight short phrases about its geometry and about what only some sides show, \
e.g. "circular base", "visible crank", "open back", "symmetric".

Describe only what can be seen. Do not mention the picture, the views, the background or the light.\
"""

_REFUSALS = re.compile(
    r"\b(i'?m|i am|i can|i cannot|can'?t|unable|sorry|as an ai)\b", re.IGNORECASE
)
_ABOUT_THE_PICTURE = re.compile(
    r"^((an?|the|this|four|several|multiple)\s+)*(3d\s+)?"
    r"(images?|pictures?|photos?|photographs?|render(ing)?s?|views?|grid)\b(?!\s*frame)",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W\d_]{2}")
_SECOND_SENTENCE = re.compile(r"[.!?]\s+\S")

_Clause = Annotated[str, StringConstraints(strip_whitespace=True, min_length=5, max_length=400)]
_Attribute = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=2, max_length=80, pattern=r"^[^,;\n]+$"),
]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    clause: _Clause
    attributes: Annotated[list[_Attribute], Field(max_length=12)]


class MalformedAnswerError(ValueError):
    """An answer that gives no caption; the message says why."""


def caption_from(text: str) -> str:
    """The caption in a model's answer.

    Raises:
        MalformedAnswerError: it is no JSON object of the two keys, a refusal, about the picture
            instead of the object, or more than a phrase.
    """
    try:
        answer = _Answer.model_validate_json(text)
    except ValidationError as error:
        raise MalformedAnswerError(f"not the JSON asked for: {explain(error, _Answer)}") from error
    clause = checked_clause(answer.clause)
    return joined(clause, [attribute.rstrip(".") for attribute in answer.attributes])


def checked_clause(text: str) -> str:
    """A phrase that names the object, without its full stop and first capital.

    Raises:
        MalformedAnswerError: it is a refusal, about the picture, or more than a phrase.
    """
    clause = text.strip().removesuffix(".")
    if _REFUSALS.search(clause):
        raise MalformedAnswerError(f"a refusal: {clause[:200]}")
    if _ABOUT_THE_PICTURE.search(clause):
        raise MalformedAnswerError(f"about the picture, not the object: {clause[:200]}")
    if not _WORD.search(clause) or "\N{REPLACEMENT CHARACTER}" in clause:
        raise MalformedAnswerError(f"no words: {clause[:200]}")
    if "\n" in clause or _SECOND_SENTENCE.search(clause):
        raise MalformedAnswerError(f"more than a phrase: {clause[:200]}")
    return re.sub(r"^(A|An|The)\b", lambda article: article[0].lower(), clause)


def response_format() -> dict[str, Any]:
    """The answer's JSON schema as a chat endpoint takes it."""
    # Servers that compile a strict schema into a grammar know few of its constraints.
    text = {"type": "string"}
    schema = {
        "type": "object",
        "properties": {"clause": text, "attributes": {"type": "array", "items": text}},
        "required": ["clause", "attributes"],
        "additionalProperties": False,
    }
    named = {"name": "caption", "strict": True, "schema": schema}
    return {"type": "json_schema", "json_schema": named}
