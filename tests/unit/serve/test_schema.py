import base64
import json
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from kiss3d_infer.serve.schema import BundleToMesh, TaskRequest, TextTo3D, problems_of

REQUEST: TypeAdapter[TextTo3D | BundleToMesh] = TypeAdapter(TaskRequest)


def problems(content: dict[str, Any]) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as refused:
        REQUEST.validate_json(json.dumps(content))
    return [(p.field, p.problem) for p in problems_of(refused.value.errors())]


def text(**values: Any) -> dict[str, Any]:
    return {"type": "text_to_3d", "prompt": "a red chair"} | values


def test_a_prompt_is_enough() -> None:
    request = REQUEST.validate_python(text())
    assert isinstance(request, TextTo3D)
    assert (request.seed, request.steps) == (0, None)


def test_an_uploaded_bundle_is_decoded_and_never_dumped() -> None:
    request = REQUEST.validate_python(
        {"type": "bundle_to_mesh", "bundle": base64.b64encode(b"\x89PNG").decode()}
    )
    assert isinstance(request, BundleToMesh) and request.bundle == b"\x89PNG"
    assert "bundle" not in request.model_dump()


@pytest.mark.parametrize(
    ("content", "field", "words"),
    [
        ({"prompt": "a chair"}, "type", "must be one of text_to_3d, bundle_to_mesh"),
        ({"type": "image_to_3d"}, "type", "must be one of"),
        ({"type": "text_to_3d"}, "prompt", "is required"),
        (text(prompt=""), "prompt", "at least 1 character"),
        (text(prompt=" \n\u3000"), "prompt", "at least 1 character"),
        (text(prompt="x" * 1001), "prompt", "at most 1000 characters"),
        (text(promt="a chair"), "promt", "unknown field; did you mean 'prompt'?"),
        (text(seed=-1), "seed", "greater than or equal to 0, not -1"),
        (text(seed=2**32), "seed", "less than 4294967296"),
        (text(steps=0), "steps", "greater than or equal to 1, not 0"),
        (text(steps=10**9), "steps", "less than or equal to 100"),
        (text(steps="20"), "steps", 'valid integer, not "20"'),
        (text(steps=True), "steps", "valid integer"),
        (text(guidance=float("nan")), "guidance", "finite"),
        (text(tile=100), "tile", "multiple of 16, not 100"),
        (text(tile=2048), "tile", "less than or equal to 1024"),
        (text(settings=[]), "settings", "must be a JSON object"),
        (text(settings={"num_face": 500}), "settings.num_face", "did you mean 'num_faces'?"),
        (text(settings={"init": "lrm"}), "settings.init", "'carve', 'hull' or 'sphere'"),
        (text(settings={"num_faces": 200_001}), "settings.num_faces", "or equal to 200000"),
        (text(settings={"texture_size": 63}), "settings.texture_size", "or equal to 64"),
        (text(settings={"texture_size": 4097}), "settings.texture_size", "or equal to 4096"),
        ({"type": "bundle_to_mesh"}, "body", "exactly one of 'bundle' and 'bundle_of'"),
        ({"type": "bundle_to_mesh", "bundle": "no base64!"}, "bundle", "standard base64"),
        ({"type": "bundle_to_mesh", "bundle_of": "../../etc/passwd"}, "bundle_of", "pattern"),
    ],
)
def test_a_wrong_value_is_named_with_its_problem(
    content: dict[str, Any], field: str, words: str
) -> None:
    ((found_field, problem),) = problems(content)
    assert found_field == field
    assert words in problem


def test_all_problems_come_together() -> None:
    assert [field for field, _ in problems(text(steps=0, seed=-1, colour="red"))] == [
        "seed",
        "steps",
        "colour",
    ]


def test_countless_mistakes_and_long_names_are_cut_short() -> None:
    found = problems(text(**{f"x{i}": 0 for i in range(5000)}) | {"y" * 10**5: 0})
    assert len(found) == 20
    assert all(len(field) <= 60 for field, _ in problems(text(**{"y" * 10**5: 0})))


def test_a_large_wrong_value_is_not_echoed() -> None:
    ((_, problem),) = problems({"type": "bundle_to_mesh", "bundle": "!" * 10**6})
    assert len(problem) < 200
