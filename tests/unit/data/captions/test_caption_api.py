import base64
import io
import json
import shutil
import signal
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import openai._base_client
import pytest
from chat_server import (
    CAPTION,
    GOOD,
    ChatServer,
    Reply,
    completion,
    cut_off,
    reply,
    running,
    says,
)
from PIL import Image
from sample_folder import NUM_SAMPLES, copied_samples, described, redescribe

from kiss3d_infer.bundle import load_bundle
from kiss3d_infer.errors import InputError
from kiss3d_train.data.captions import CaptionSummary, caption_samples
from kiss3d_train.data.captions.api import ApiCaptioner, ApiSettings, Endpoint, find_endpoint
from kiss3d_train.data.captions.job import CAPTION_QUARANTINE

HTML = reply(200, b"<html>busy</html>", **{"Content-Type": "text/html"})


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with running() as server:
        yield server


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that the client makes between tries, which then last no time."""
    made: list[float] = []
    monkeypatch.setattr(openai._base_client.time, "sleep", made.append)
    return made


def ask(server: ChatServer, folder: Path, limit: int | None = None, **given: Any) -> CaptionSummary:
    settings = ApiSettings.model_validate({"concurrency": 1, "timeout": 5, **given})
    captioner = ApiCaptioner(settings, Endpoint(server.url, "eyes-1", "secret"), folder)
    return caption_samples(folder, captioner, limit=limit)


def captions(folder: Path) -> list[str]:
    return [meta["caption"] for meta in described(folder)]


def test_every_sample_gets_the_models_caption_and_says_whose_it_is(
    server: ChatServer, samples: Path
) -> None:
    before = described(samples)
    summary = ask(server, samples, concurrency=3, prompt_price=2.0, answer_price=8.0)
    assert (summary.captioned, summary.kept, summary.is_complete) == (NUM_SAMPLES, 0, True)
    source = {"captioner": "api", "model": "eyes-1", "prompt": "1"}
    changed = {"caption": CAPTION, "caption_source": source}
    assert described(samples) == [meta | changed for meta in before]
    assert summary.figures == {
        "requests": NUM_SAMPLES,
        "prompt_tokens": 1000 * NUM_SAMPLES,
        "answer_tokens": 100 * NUM_SAMPLES,
        "spent_usd": pytest.approx(NUM_SAMPLES * 0.0028),
    }


def test_the_model_sees_the_four_rgb_views_in_a_row(server: ChatServer, samples: Path) -> None:
    ask(server, samples, limit=1)
    (request,) = server.requests
    assert request["path"] == "/v1/chat/completions" and request["model"] == "eyes-1"
    assert server.keys == ["Bearer secret"]
    (message,) = request["messages"]
    _, image = message["content"]
    data = base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))
    shown = Image.open(io.BytesIO(data))
    bundle = load_bundle(min(samples.glob("*.bundle.png"))).to_pil()
    assert shown.size == (4 * 24, 24)
    assert shown.tobytes() == bundle.crop((0, 0, 96, 24)).tobytes()


@pytest.mark.parametrize(
    ("misbehaves", "pause"),
    [
        (reply(429, {"error": {"message": "slow down"}}, **{"Retry-After": "7"}), 7.0),
        (reply(429, {"error": {"message": "slow down"}}), None),
        (reply(500, {"error": {"message": "oops"}}), None),
        (reply(503, b"", **{"Retry-After": "3"}), 3.0),
        (cut_off, None),
    ],
    ids=["429 with Retry-After", "429", "500", "503 with Retry-After", "body cut off"],
)
def test_what_may_pass_is_tried_again(
    server: ChatServer, samples: Path, pauses: list[float], misbehaves: Reply, pause: float | None
) -> None:
    server.script.extend([misbehaves, misbehaves])
    assert ask(server, samples, limit=1).captioned == 1
    assert len(server.requests) == 3
    if pause is not None:
        assert pauses == [pause, pause]
    else:
        first, second = pauses
        assert 0 < first <= 0.5 < second <= 1.0


def test_an_answer_that_takes_too_long_is_asked_for_again(
    server: ChatServer, samples: Path, pauses: list[float]
) -> None:
    server.script.append(lambda _: server.ended.wait(20) and None)
    assert ask(server, samples, limit=1, timeout=0.3).captioned == 1
    assert len(server.requests) == 2


def test_an_endpoint_that_stays_down_costs_no_sample(
    server: ChatServer, samples: Path, pauses: list[float]
) -> None:
    before = described(samples)
    server.then = reply(500, {"error": {"message": "oops"}})
    summary = ask(server, samples, retries=1)
    assert (summary.captioned, summary.unanswered, summary.quarantined) == (0, NUM_SAMPLES, 0)
    assert not summary.is_complete and described(samples) == before
    server.then = says(GOOD)
    assert ask(server, samples).captioned == NUM_SAMPLES


@pytest.mark.parametrize(
    "bad",
    [
        says("A red well."),
        says('{"clause": "a red well"'),
        says('{"clause": "a red well", "attributes": "round"}'),
        says('{"clause": "a red well", "attributes": [], "note": "nice"}'),
        says('{"clause": "", "attributes": []}'),
        says('{"clause": "I\'m sorry, I can\'t help with that", "attributes": []}'),
        says('{"clause": "Four views of a red well", "attributes": []}'),
        says('{"clause": "A well. It has a roof", "attributes": []}'),
        says(GOOD, finish="length"),
        says(None, refusal="I cannot describe this."),
        says(None, finish="content_filter"),
    ],
)
def test_an_answer_that_is_no_caption_is_asked_for_once_more_and_never_stored(
    server: ChatServer, samples: Path, bad: Reply
) -> None:
    before = described(samples)
    server.script.append(bad)
    assert ask(server, samples, limit=1).captioned == 1
    assert len(server.requests) == 2

    server.script.extend([bad, bad])
    summary = ask(server, samples, limit=2)
    assert (summary.captioned, summary.kept, summary.quarantined) == (0, 1, 1)
    assert len(server.requests) == 4
    assert described(samples)[1:] == before[1:]
    (line,) = (samples / CAPTION_QUARANTINE).read_text().splitlines()
    assert json.loads(line)["key"] == before[1]["key"] and json.loads(line)["reason"]
    # The same question is not paid for again, until the line is removed.
    assert ask(server, samples, limit=2).quarantined == 1
    assert len(server.requests) == 4
    (samples / CAPTION_QUARANTINE).unlink()
    assert ask(server, samples, limit=2).captioned == 1
    assert (samples / CAPTION_QUARANTINE).read_text() == ""


@pytest.mark.parametrize(
    "body", [HTML, reply(200, b'{"choices": ['), reply(200, {"error": "busy"})]
)
def test_what_is_no_chat_completion_is_not_the_samples_fault(
    server: ChatServer, samples: Path, body: Reply
) -> None:
    server.script.append(body)
    assert ask(server, samples, limit=1).unanswered == 1
    assert ask(server, samples, limit=1).captioned == 1


def test_a_sample_that_the_endpoint_refuses_is_quarantined(
    server: ChatServer, samples: Path
) -> None:
    server.script.append(reply(400, {"error": {"message": "unsafe image"}}))
    summary = ask(server, samples)
    assert (summary.captioned, summary.quarantined) == (NUM_SAMPLES - 1, 1)
    assert "unsafe image" in (samples / CAPTION_QUARANTINE).read_text()


def test_a_wrong_key_ends_the_job_and_is_not_shown(server: ChatServer, samples: Path) -> None:
    server.then = reply(401, {"error": {"message": "wrong key"}})
    with pytest.raises(InputError, match=r"wrong key.*127\.0\.0\.1.*_KEY") as caught:
        ask(server, samples)
    assert "secret" not in str(caught.value)
    assert len(server.requests) == 1


def test_answers_that_were_paid_for_are_not_paid_for_again(
    server: ChatServer, samples: Path, tmp_path: Path
) -> None:
    ask(server, samples)
    for path in samples.glob("[!.]*.json"):
        redescribe(path, caption_source=None)
    again = ask(server, samples)
    assert (again.captioned, again.figures["requests"]) == (NUM_SAMPLES, 0)
    # Another picture, and another model, are other questions.
    one, other, *_ = sorted(samples.glob("*.bundle.png"))
    picture = Image.open(one).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture.save(one)
    redescribe(one.with_suffix("").with_suffix(".json"), caption_source=None)
    assert ask(server, samples).figures["requests"] == 1
    shutil.copy(other, one)
    captioner = ApiCaptioner(ApiSettings(), Endpoint(server.url, "eyes-2", "secret"), samples)
    assert caption_samples(samples, captioner).figures["requests"] == NUM_SAMPLES


@pytest.mark.parametrize("concurrency", [1, 4])
def test_the_job_stops_before_the_cap_and_the_next_run_goes_on(
    server: ChatServer, samples: Path, concurrency: int
) -> None:
    # A caption costs 0.0011 USD; two fit, also when several are asked for at a time.
    prices = {"prompt_price": 1.0, "answer_price": 1.0, "max_cost": 0.0025}
    summary = ask(server, samples, concurrency=concurrency, **prices)
    assert summary.captioned == 2 and len(server.requests) == 2
    assert not summary.is_complete and "max_cost = 0.0025" in summary.stopped
    assert "spent usd 0.0022" in str(summary)
    assert ask(server, samples, **prices).captioned == 2
    assert captions(samples) == [CAPTION] * NUM_SAMPLES


def test_a_cap_needs_prices_and_an_endpoint_that_counts(server: ChatServer, samples: Path) -> None:
    with pytest.raises(ValueError, match="max_cost needs prompt_price"):
        ApiSettings(max_cost=1)
    server.then = reply(200, completion(GOOD, usage=None))
    summary = ask(server, samples, prompt_price=1, answer_price=1, max_cost=1)
    assert len(server.requests) == 1 and "does not tell tokens" in summary.stopped


def test_requests_are_spread_over_time_repeated_ones_too(
    server: ChatServer, samples: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[float] = []
    monkeypatch.setattr(
        "kiss3d_train.data.captions.budget.Pace.wait", lambda pace, stop: turns.append(pace._gap)
    )
    server.script.append(reply(500, {"error": {"message": "oops"}}))
    ask(server, samples, limit=1, requests_per_minute=30)
    assert turns == [2.0, 2.0]


def test_a_job_whose_every_sample_fails_gives_up(
    server: ChatServer, rendered: Path, tmp_path: Path
) -> None:
    folder = copied_samples(rendered, tmp_path / "all", count=14)
    server.then = reply(400, {"error": {"message": "no pictures, please"}})
    summary = ask(server, folder)
    assert "10 samples in a row failed" in summary.stopped
    assert len(server.requests) < 14


def test_the_endpoint_comes_from_the_environment() -> None:
    public = find_endpoint({"OPENAI_API_KEY": "k", "OPENAI_MODEL": "m"})
    assert public == Endpoint("https://api.openai.com/v1", "m", "k")
    own = {"KISS3D_CAPTION_URL": "http://here/v1", "KISS3D_CAPTION_MODEL": "eyes"}
    assert find_endpoint(own).url == "http://here/v1"
    both = find_endpoint(own | {"OPENAI_MODEL": "m", "KISS3D_CAPTION_KEY": "k"})
    assert (both.model, both.key) == ("eyes", "k")
    assert "k" not in repr(Endpoint("u", "m", "k"))
    with pytest.raises(InputError, match="no model"):
        find_endpoint({"OPENAI_API_KEY": "k"})
    with pytest.raises(InputError, match="neither an endpoint nor a key"):
        find_endpoint({"OPENAI_MODEL": "m"})


def test_ctrl_c_loses_no_answer_that_was_paid_for(server: ChatServer, samples: Path) -> None:
    def interrupt_and_answer(handler: BaseHTTPRequestHandler) -> None:
        signal.raise_signal(signal.SIGINT)
        says(GOOD)(handler)

    server.script.extend([says(GOOD), interrupt_and_answer])
    with pytest.raises(KeyboardInterrupt):
        ask(server, samples)
    assert len(server.requests) == 2
    assert ask(server, samples).is_complete
    assert captions(samples) == [CAPTION] * NUM_SAMPLES
    assert len(server.requests) == NUM_SAMPLES
