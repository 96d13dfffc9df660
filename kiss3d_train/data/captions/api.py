"""Captions by a vision model behind an OpenAI-compatible chat endpoint."""

from __future__ import annotations

import base64
import io
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from kiss3d_infer.config import Config, Integer, Number
from kiss3d_infer.errors import InputError
from kiss3d_train.data.captions.answer import (
    PROMPT,
    PROMPT_VERSION,
    MalformedAnswerError,
    caption_from,
    response_format,
)
from kiss3d_train.data.captions.budget import Budget, Pace
from kiss3d_train.data.captions.cache import AnswerCache, cache_key
from kiss3d_train.data.captions.captioner import (
    BadSampleError,
    CaptionSource,
    NoAnswerError,
    Sample,
    StopCaptioningError,
    read_bundle,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from kiss3d_infer.bundle.image import Bundle

_PUBLIC_URL = "https://api.openai.com/v1"
_MAX_ANSWERS = 2
"""Times that a model is asked about a sample before the sample is given up."""

Positive = Annotated[Integer, Field(gt=0)]
Price = Annotated[Number, Field(ge=0)]


class ApiSettings(Config):
    """How the endpoint is asked, and what it may cost."""

    concurrency: Positive = 4
    """Requests under way at a time."""
    requests_per_minute: Annotated[Number, Field(gt=0)] | None = None
    """At most so many, repeated ones included; no limit when not given."""
    timeout: Annotated[Number, Field(gt=0)] = 60.0
    """Seconds that an answer may take."""
    retries: Annotated[Integer, Field(ge=0)] = 5
    """Times that a request is repeated after 408, 409, 429, 5xx or no answer; the pauses double
    from half a second to eight, or are what Retry-After says, up to two minutes."""
    max_tokens: Positive = 2000
    """Of one answer, thinking included; a longer one is cut and counts as malformed."""
    detail: Literal["auto", "low", "high"] = "auto"
    """How closely the model looks at the picture, where the endpoint offers a choice."""
    prompt_price: Price | None = None
    """USD per million tokens sent."""
    answer_price: Price | None = None
    """USD per million tokens answered."""
    max_cost: Annotated[Number, Field(gt=0)] | None = None
    """USD that this run may spend; none without a cap."""

    @model_validator(mode="after")
    def _is_priced(self) -> Self:
        if self.max_cost is not None and (self.prompt_price is None or self.answer_price is None):
            raise ValueError("max_cost needs prompt_price and answer_price")
        return self


@dataclass(frozen=True)
class Endpoint:
    """Where the model is, and its name; the key is kept out of every print."""

    url: str
    model: str
    key: str

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r}, {self.model!r})"


def find_endpoint(environment: Mapping[str, str] = os.environ) -> Endpoint:
    """Read the endpoint from the environment.

    KISS3D_CAPTION_URL, _MODEL and _KEY, else OPENAI_BASE_URL, OPENAI_MODEL and OPENAI_API_KEY. A
    server of one's own needs no key.

    Raises:
        InputError: the model is not named, or OpenAI's own endpoint would be asked without a key.
    """

    def value(name: str, other: str) -> str:
        return environment.get(f"KISS3D_CAPTION_{name}") or environment.get(other) or ""

    url = value("URL", "OPENAI_BASE_URL")
    model, key = value("MODEL", "OPENAI_MODEL"), value("KEY", "OPENAI_API_KEY")
    if not model:
        raise InputError(
            "no model is named", where="KISS3D_CAPTION_MODEL", fix="set the variable to its name"
        )
    if not (url or key):
        raise InputError(
            "neither an endpoint nor a key is given",
            where="KISS3D_CAPTION_URL, KISS3D_CAPTION_KEY",
            fix="set the URL of a server of your own, or a key for OpenAI's",
        )
    return Endpoint(url or _PUBLIC_URL, model, key or "none")


class ApiCaptioner:
    """Asks about the RGB views, and keeps every good answer.

    Args:
        settings: limits and prices.
        endpoint: who is asked.
        folder: where answers are kept.
    """

    def __init__(self, settings: ApiSettings, endpoint: Endpoint, folder: Path) -> None:
        self.source = CaptionSource("api", endpoint.model, PROMPT_VERSION)
        self.num_threads = settings.concurrency
        self._settings, self._endpoint = settings, endpoint
        self._cache = AnswerCache(folder)
        self._budget = Budget(
            settings.prompt_price or 0.0, settings.answer_price or 0.0, settings.max_cost
        )
        self._pace = Pace(settings.requests_per_minute)
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._num_requests = 0

    @property
    def params(self) -> dict[str, object]:
        """Model, prompt and limits."""
        return {**self.source.to_json(), **self._settings.model_dump()}

    @property
    def figures(self) -> dict[str, float]:
        """Requests sent, tokens of the answers, and what they cost if the prices are known."""
        budget = self._budget
        figures: dict[str, float] = {
            "requests": self._num_requests,
            "prompt_tokens": budget.prompt_tokens,
            "answer_tokens": budget.answer_tokens,
        }
        if self._settings.prompt_price is not None:
            figures["spent_usd"] = round(budget.spent, 6)
        return figures

    def caption(self, sample: Sample) -> str:
        """The sample's caption, from the cache if the question was answered before."""
        picture = rgb_strip(read_bundle(sample))
        question = f"{PROMPT}\n{picture.size}"
        key = cache_key(picture.tobytes(), self._endpoint.model, question)
        if known := self._known(key):
            return known
        reason = ""
        for _ in range(_MAX_ANSWERS):
            text = self._ask(picture)
            try:
                caption = caption_from(text)
            except MalformedAnswerError as error:
                reason = str(error)
                continue
            self._cache.put(key, text)
            return caption
        raise BadSampleError(reason)

    def _known(self, key: str) -> str | None:
        """The caption in a kept answer, unless today's rules would refuse it."""
        try:
            return caption_from(self._cache.get(key) or "")
        except MalformedAnswerError:
            return None

    def stop(self) -> None:
        """Begin no further request."""
        self._stopping.set()

    def _ask(self, picture: Image) -> str:
        """The model's answer, whatever it says; empty if it refuses or is cut off."""
        self._budget.begin()
        usage = None
        try:
            completion = self._complete(picture)
            if completion.usage is not None:
                usage = completion.usage.prompt_tokens, completion.usage.completion_tokens
            choice = completion.choices[0]
            text = choice.message.content if choice.finish_reason == "stop" else None
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise NoAnswerError(f"the endpoint answers no chat completion: {error}") from error
        finally:
            self._budget.end(usage)
        if usage is None and self._settings.max_cost is not None:
            self.stop()
            raise StopCaptioningError("the endpoint does not tell tokens, so max_cost cannot hold")
        return text or ""

    def _complete(self, picture: Image) -> Any:
        import openai

        try:
            return self._client.chat.completions.create(
                model=self._endpoint.model,
                messages=[{"role": "user", "content": self._content(picture)}],
                response_format=response_format(),
                max_completion_tokens=self._settings.max_tokens,
            )
        except (
            openai.AuthenticationError,
            openai.PermissionDeniedError,
            openai.NotFoundError,
        ) as e:
            self.stop()
            raise InputError(
                f"the endpoint refuses: {_first_line(e)}",
                where=self._endpoint.url,
                fix="check KISS3D_CAPTION_URL, _MODEL and _KEY",
            ) from e
        except (openai.BadRequestError, openai.UnprocessableEntityError) as e:
            raise BadSampleError(f"the endpoint refuses: {_first_line(e)}") from e
        except openai.OpenAIError as e:
            raise NoAnswerError(_first_line(e)) from e

    def _content(self, picture: Image) -> list[dict[str, Any]]:
        url = f"data:image/png;base64,{base64.b64encode(_png(picture)).decode()}"
        image = {"url": url, "detail": self._settings.detail}
        return [{"type": "text", "text": PROMPT}, {"type": "image_url", "image_url": image}]

    @cached_property
    def _client(self) -> Any:
        import openai

        settings = self._settings
        return openai.OpenAI(
            base_url=self._endpoint.url,
            api_key=self._endpoint.key,
            timeout=settings.timeout,
            max_retries=settings.retries,
            # A hook, and not a pause before the call, holds the repeated requests back as well.
            http_client=openai.DefaultHttpxClient(event_hooks={"request": [self._before_request]}),
        )

    def _before_request(self, _request: object) -> None:
        import openai

        self._pace.wait(self._stopping)
        if self._stopping.is_set():
            raise openai.OpenAIError("interrupted")  # the only kind that is not repeated
        with self._lock:
            self._num_requests += 1


def rgb_strip(bundle: Bundle) -> Image:
    """The RGB views side by side, as the model is shown them."""
    from PIL import Image

    from kiss3d_infer.scene.color import to_bytes

    return Image.fromarray(to_bytes(bundle.rgb.permute(2, 0, 3, 1).flatten(1, 2)))


def _png(picture: Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
