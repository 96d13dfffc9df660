from typing import Any

import pytest

from kiss3d_train.data.curation.config import CurationConfig
from kiss3d_train.data.curation.filters import Captions, Licences
from kiss3d_train.data.curation.job import decide
from kiss3d_train.data.curation.sample import Sample, says
from kiss3d_train.data.curation.statistics import Statistics

GOOD = Statistics(
    num_faces=5000,
    num_parts=3,
    num_ground_parts=1,
    num_objects=1,
    num_things=1,
    main_object=1.0,
    extents=(0.5, 1.0, 0.4),
    boundary_edges=0.01,
    open_sides=0.1,
    has_texture=True,
    has_material=True,
    has_vertex_colors=False,
    num_colors=7,
    colors=(("#806040", 0.9), ("#202020", 0.1)),
    coverage=(0.3, 0.2, 0.3, 0.2),
    image_hash="0123456789abcdef" * 4,
)


def sample(key: str = "a", description: dict[str, Any] | None = None, **figures: Any) -> Sample:
    """A sample that passes every filter but for what is given."""
    words = {"uid": "", "name": "chair", "caption": "a chair", "category": "seats", "tags": ()}
    words |= {"source": "here", "licence": "CC-BY 4.0"}
    return Sample(
        key=key, **(words | (description or {})), statistics=GOOD.model_copy(update=figures)
    )


def rejecting(given: Sample, **sections: Any) -> list[str]:
    """Names of the filters that reject a sample."""
    config = CurationConfig.model_validate({"filters": sections})
    (decision,) = decide([given], config).decisions
    assert decision.accepted == (not decision.reasons)
    return list(decision.reasons)


def test_a_good_sample_is_accepted() -> None:
    assert rejecting(sample()) == []


@pytest.mark.parametrize(
    ("figures", "name"),
    [
        ({"has_texture": False, "has_material": False}, "unpainted"),
        ({"num_faces": 49}, "few_faces"),
        ({"extents": (1.0, 0.6, 0.01)}, "flat"),
        ({"coverage": (0.3, 0.003, 0.3, 0.2)}, "flat"),
        ({"open_sides": 0.95}, "incomplete"),
        ({"num_things": 30}, "scene"),
        ({"num_things": 3, "extents": (1.0, 0.05, 0.9)}, "scene"),
        ({"num_objects": 2, "main_object": 0.7}, "several_objects"),
        ({"num_objects": 3, "main_object": 0.5}, "several_objects"),
    ],
)
def test_each_filter_rejects_what_it_is_for_and_can_be_switched_off(
    figures: dict[str, Any], name: str
) -> None:
    assert rejecting(sample(**figures)) == [name]
    assert rejecting(sample(**figures), **{name: {"enabled": False}}) == []


@pytest.mark.parametrize(
    "figures",
    [
        {"has_texture": False, "has_material": False, "has_vertex_colors": True},
        {"num_faces": 50},
        {"open_sides": 1.0, "boundary_edges": 0.0},  # closed, but wound the wrong way
        {"extents": (1.0, 0.05, 0.9)},
        {"num_objects": 600, "main_object": 0.97},  # a tree and its leaves
        {"num_objects": 2, "main_object": 0.5},  # shoes
    ],
)
def test_what_only_resembles_a_bad_sample_passes(figures: dict[str, Any]) -> None:
    assert rejecting(sample(**figures)) == []


def test_a_sample_may_be_rejected_for_several_reasons_with_their_figures() -> None:
    bad = sample(num_faces=10, extents=(1.0, 0.6, 0.01))
    (decision,) = decide([bad], CurationConfig()).decisions
    assert list(decision.reasons) == ["few_faces", "flat"]
    finding = decision.reasons["few_faces"]
    assert finding.figures == {"num_faces": 10} and "fewer than 50" in finding.reason
    assert decision.reasons["flat"].figures["thickness"] == 0.01


@pytest.mark.parametrize(
    ("text", "phrase", "found"),
    [
        ("a red Car", "car", True),
        ("a playing card", "car", False),
        ("CC-BY-NC 4.0", "nc", True),
        ("CC BY 4.0", "cc-by", True),
        ("Sync license", "nc", False),
        ("All rights are reserved", "all rights reserved", False),
        ("DÉCOR", "décor", True),
        ("", "a", False),
    ],
)
def test_words_are_whole_and_their_case_does_not_matter(
    text: str, phrase: str, found: bool
) -> None:
    assert says(text, phrase) is found


@pytest.mark.parametrize("field", ["name", "caption", "category", "tags"])
def test_a_denied_word_is_found_wherever_it_stands(field: str) -> None:
    value = ("one", "Terrain scan") if field == "tags" else "Terrain scan"
    finding = Captions(deny=("room", "scan")).finding(sample(description={field: value}))
    assert finding is not None and "'scan'" in finding.reason


@pytest.mark.parametrize(
    ("licence", "allowed", "denied"),
    [
        ("CC-BY 4.0", True, False),
        ("cc by", True, False),
        ("CC-BY-NC 4.0", False, True),
        ("CC0-1.0", True, False),
        ("Public domain", False, False),
        (None, False, False),
    ],
)
def test_licences_are_allowed_by_their_whole_name_and_denied_by_a_word(
    licence: str | None, allowed: bool, denied: bool
) -> None:
    licensed = sample(description={"licence": licence})
    assert (Licences(allow=("CC-BY", "CC0")).finding(licensed) is None) == allowed
    assert (Licences(deny=("nc",)).finding(licensed) is not None) == denied


def _duplicates(*samples: Sample) -> dict[str, str]:
    decisions = decide(samples, CurationConfig()).decisions
    return {d.key: str(d.reasons["duplicates"].figures["like"]) for d in decisions if d.reasons}


def _flipped(num_bits: int) -> str:
    value = int(GOOD.image_hash, 16) ^ sum(1 << (7 * bit) for bit in range(num_bits))
    return f"{value:064x}"


def test_the_first_of_duplicates_stays_whatever_their_order() -> None:
    same = [sample("c"), sample("a"), sample("b", image_hash=_flipped(8))]
    assert _duplicates(*same) == _duplicates(*same[::-1]) == {"b": "a", "c": "a"}


@pytest.mark.parametrize(
    "figures",
    [
        {"image_hash": _flipped(9)},
        {"extents": (0.52, 1.0, 0.4)},
        {"num_faces": 5200},
        {"colors": (("#408060", 0.9), ("#202020", 0.1))},
        {"image_hash": GOOD.image_hash[:32]},  # of two views
    ],
)
def test_what_differs_in_one_respect_is_no_duplicate(figures: dict[str, Any]) -> None:
    assert _duplicates(sample("a"), sample("b", **figures)) == {}


def test_a_rejected_sample_leaves_its_place_to_its_duplicate() -> None:
    assert _duplicates(sample("b"), sample("c")) == {"c": "b"}
    first = sample("a", description={"licence": "All rights reserved"})
    decisions = decide([first, sample("b"), sample("c")], CurationConfig()).decisions
    assert [list(d.reasons) for d in decisions] == [["licences"], [], ["duplicates"]]


def test_what_resembles_only_a_duplicate_is_compared_with_what_stays() -> None:
    a, b, c = (sample(key, image_hash=_flipped(n)) for key, n in (("a", 0), ("b", 8), ("c", 16)))
    assert _duplicates(a, b, c) == {"b": "a"}
