import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from http_client import TEXT, refusal


def test_an_unknown_field_is_named(client: TestClient) -> None:
    response = client.post("/v1/tasks", json=TEXT | {"promt": "x"})
    assert refusal(response) == ("promt", "unknown field; did you mean 'prompt'?")


def test_a_body_that_is_no_json_is_refused(client: TestClient) -> None:
    headers = {"Content-Type": "application/json"}
    response = client.post("/v1/tasks", content=b'{"type": ', headers=headers)
    assert refusal(response)[0] == "body"
    for content in (b'{"type": "\xff"}', b"[" * 100_000, b"9" * 5000):
        response = client.post("/v1/tasks", content=content, headers=headers)
        assert refusal(response) == ("body", "not valid JSON"), content[:20]


def test_json_without_its_content_type_is_explained(client: TestClient) -> None:
    explained = ("body", "must be a JSON object (send Content-Type: application/json)")
    for content, headers in (
        (json.dumps(TEXT), {}),
        (json.dumps(TEXT), {"Content-Type": "application/x-www-form-urlencoded"}),  # curl's default
        ("[]", {"Content-Type": "application/json"}),
        ("null", {"Content-Type": "application/json"}),
    ):
        response = client.post("/v1/tasks", content=content, headers=headers)
        assert refusal(response) == explained


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
def test_a_body_beyond_the_limit_is_refused(client: TestClient, declared: bool) -> None:
    data = b"x" * (2**20 + 1)
    content: Any = data if declared else (data[i : i + 4096] for i in range(0, len(data), 4096))
    headers = {"Content-Type": "application/json"}
    response = client.post("/v1/tasks", content=content, headers=headers)
    assert response.status_code == 413
    assert response.json()["error"] == "the request is larger than 1 MiB"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/tasks/nope",
        "/v1/tasks/" + "0" * 32,
        "/v1/assets/" + "0" * 32 + "/asset.glb",
        "/v1/assets/" + "0" * 32 + "/tasks.sqlite3",
        "/v1/assets/..%2f..%2f/tasks.sqlite3",
        "/v1/assets/%2e%2e/tasks.sqlite3",
        "/nothing",
    ],
)
def test_what_does_not_exist_is_404_in_the_common_form(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 404
    assert set(response.json()) == {"error", "problems"}


def test_a_method_that_an_address_does_not_take_is_405_in_the_common_form(
    client: TestClient,
) -> None:
    response = client.put("/v1/tasks")
    assert response.status_code == 405
    assert set(response.json()) == {"error", "problems"}
