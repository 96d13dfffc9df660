"""The benchmark of kiss3d-mini judges exact bundles well, wrong ones badly, and resumes."""

import json

import pytest
import torch

from benchmarks.mini import classifier, samples
from benchmarks.mini.colors import color_match
from benchmarks.mini.held_out import NUM_CLASSES, HeldOut, held_out
from benchmarks.mini.judges import Judges
from benchmarks.mini.nearest import descriptors, nearest_class
from benchmarks.mini.results import Results, means
from benchmarks.mini.samples import measured, reconstructed
from kiss3d_infer.bundle import PUBLISHED, Bundle
from kiss3d_infer.errors import InputError
from kiss3d_infer.flux.models import Drawing
from kiss3d_infer.reconstruct import ReconstructSettings
from kiss3d_train.data.sources.toybox import make
from kiss3d_train.data.sources.toybox.paint import COLORS

BLANK = Bundle(torch.ones(3, 128, 256))
QUICK = ReconstructSettings(coarse_steps=10, fine_steps=0, num_faces=1000, texture_size=64)


class ExactModel:
    """A model that draws just what it is asked for."""

    layout, drawing = PUBLISHED, Drawing(tile=64)

    def draw(self, thing):
        return thing.bundle(64)

    def encoded_and_decoded(self, bundle):
        return Bundle((bundle.image * 0.9).clamp(0, 1))


@pytest.fixture(scope="module")
def judges():
    """Of the first three makers alone, so that training takes moments."""
    few = [thing for thing in held_out(8 * NUM_CLASSES, series=9002) if thing.maker < 3]
    views = torch.stack([classifier.views_of(thing.bundle(64)) for thing in few])
    return Judges.trained(views, torch.tensor([thing.maker for thing in few]), epochs=12)


def test_objects_are_the_same_each_time_and_other_in_every_series():
    assert HeldOut(5, 9001).caption == HeldOut(5, 9001).caption
    first, other = ([thing.caption for thing in held_out(20, series)] for series in (9001, 0))
    assert first != other
    assert all(thing.color is None or thing.color in COLORS for thing in held_out(60))
    assert all(thing.color is None or thing.color in thing.caption for thing in held_out(60))
    assert sum(thing.color is not None for thing in held_out(60)) > 30


def test_few_words_are_a_name_in_the_only_colour_before_it():
    for whole, few in zip(held_out(60), held_out(60, few_words=True), strict=True):
        name = make(whole.index, whole.series).name
        assert few.caption.endswith(f"{whole.color} {name}" if whole.color else f" {name}")
        assert few.color == whole.color and len(few.caption) <= len(whole.caption)
        assert few.caption.startswith(("a ", "an ")) and " with " not in few.caption


def test_both_judges_know_exact_bundles_they_have_not_seen(judges):
    new = [thing for thing in held_out(4 * NUM_CLASSES) if thing.maker < 3]
    views = torch.stack([classifier.views_of(thing.bundle(64)) for thing in new])
    classes = torch.tensor([thing.maker for thing in new])
    accuracy = judges.accuracy(views, classes)
    assert accuracy["class_network"] > 0.9
    assert accuracy["class_nearest"] > 0.9
    soft = classifier.softened(views)
    assert not torch.equal(soft, views) and soft.shape == views.shape
    assert min(judges.accuracy(soft, classes).values()) > 0.9
    wrong = judges.accuracy(views, (classes + 1) % 3)
    assert max(wrong.values()) < 0.1


def test_the_nearest_descriptor_is_of_the_same_silhouettes_then_of_the_colour():
    shape, other = (HeldOut(i, 9001).bundle(64) for i in range(2))
    recolored = Bundle(torch.cat([shape.image[[2, 0, 1], :64], shape.image[:, 64:]], dim=1))
    views = torch.stack([classifier.views_of(bundle) for bundle in (shape, recolored, other)])
    known = descriptors(views)
    assert nearest_class(views, known, torch.arange(3)).tolist() == [0, 1, 2]
    without_itself = nearest_class(views[:1], known[1:], torch.tensor([1, 2]))
    assert without_itself.tolist() == [1]


def painted(word, second=None):
    """A square of a colour word in every view, its right third in another."""
    image = torch.ones(3, 128, 256)
    for view in range(4):
        left, rows = view * 64 + 16, slice(16, 48)
        image[:, rows, left : left + 32] = torch.tensor(COLORS[word])[:, None, None]
        if second:
            part = slice(left + 21, left + 32)
            image[:, rows, part] = torch.tensor(COLORS[second])[:, None, None]
        image[:, 80:112, left : left + 32] = torch.tensor([0.5, 0.5, 1.0])[:, None, None]
    return Bundle(image)


@pytest.mark.parametrize("word", COLORS)
def test_every_colour_word_is_found_on_its_own_colour(word):
    assert color_match(painted(word), word) == {"color_main": True, "color_shown": True}


def test_a_second_colour_is_shown_but_not_the_main_one_and_nothing_has_no_colour():
    both = painted("red", "blue")
    assert color_match(both, "blue") == {"color_main": False, "color_shown": True}
    assert color_match(both, "green") == {"color_main": False, "color_shown": False}
    assert color_match(BLANK, "white") == {"color_main": False, "color_shown": False}


def test_a_perfect_model_scores_as_exact_renders_do_and_a_wrong_one_does_not(
    judges, tmp_path, monkeypatch
):
    monkeypatch.setattr(samples, "_BUDGET", QUICK)
    thing = HeldOut(1, 9001)
    right = measured(thing, judges, ExactModel(), tmp_path)
    drawn = {name: value for name, value in right["drawn"].items() if name != "seconds"}
    assert drawn == right["exact"]
    assert drawn["class_network"] and drawn["class_nearest"] and drawn["valid"]
    assert right["mesh"]["silhouette_iou"] > 0.8
    assert right["vae"]["psnr/rgb"] == pytest.approx(20, abs=1.5)  # nearly white: a tenth darker
    assert (tmp_path / "0001.bundle.png").is_file()
    wrong = judges.judged(HeldOut(2, 9001).bundle(64), thing)
    assert not wrong["class_network"] and not wrong["class_nearest"]


def test_what_cannot_be_reconstructed_agrees_with_nothing():
    row = reconstructed(BLANK)
    assert row["agrees"] is False
    assert "empty" in row["problem"]


def test_means_say_over_how_many_rows_they_go():
    rows = [{"drawn": {"valid": True, "color_main": False}}, {"drawn": {"valid": False}}]
    assert means(rows) == {
        "drawn": {"valid": {"mean": 0.5, "of": 2}, "color_main": {"mean": 0.0, "of": 1}}
    }


def test_results_go_on_where_they_stopped_but_not_with_another_model(tmp_path):
    path = tmp_path / "results.json"
    first = Results(path, {"base": "a", "steps": 4})
    first.add({"index": 0, "drawn": {"valid": True}})
    first.note("judges", {"class_network": 1.0})
    again = Results(path, {"base": "a", "steps": 4})
    assert [row["index"] for row in again.rows] == [0]
    assert again.noted("judges") == {"class_network": 1.0} and again.noted("cost") is None
    again.add({"index": 1, "drawn": {"valid": False}})
    report = json.loads(path.read_bytes())
    assert report["mean"]["drawn"]["valid"] == {"mean": 0.5, "of": 2}
    assert list(report)[-1] == "rows"
    with pytest.raises(InputError, match=r"another setup \(base differ\)"):
        Results(path, {"base": "b", "steps": 4})
    path.write_text("[]")
    with pytest.raises(InputError, match="no results"):
        Results(path, {})
