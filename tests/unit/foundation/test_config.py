from pathlib import Path

import pytest
from pydantic import Field

from kiss3d_infer.config import Config, load_config
from kiss3d_infer.errors import InputError


class Optimizer(Config):
    lr: float = Field(1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)


class Source(Config):
    path: Path
    size: int = Field(1, gt=0)


class Recipe(Config):
    steps: int = 10
    name: str | None = None
    optimizer: Optimizer = Optimizer()
    fallback: Optimizer | None = None
    source: Source | None = None


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_file_overrides_defaults_and_set_overrides_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "steps: 5\noptimizer: {lr: 0.1}\n")
    resolved = load_config(Recipe, path, ["optimizer.lr=0.2", "name=null"])
    assert resolved.config == Recipe(steps=5, optimizer=Optimizer(lr=0.2))
    origins = {key: origin for key, _, origin in resolved.rows()}
    assert origins["steps"] == str(path)
    assert origins["optimizer.lr"] == "--set"
    assert origins["optimizer.betas"] == "default"


def test_resolved_yaml_reads_back_to_the_same_config(tmp_path: Path) -> None:
    resolved = load_config(Recipe, write(tmp_path, "steps: 5"), ["optimizer.lr=3e-4"])
    again = load_config(Recipe, write(tmp_path, resolved.to_yaml()))
    assert again.config == resolved.config


def test_all_errors_are_reported_at_once_with_suggestions(tmp_path: Path) -> None:
    path = write(tmp_path, "stepz: 5\nsteps: many\noptimizer: {lr: -1, beta: 1}\n")
    with pytest.raises(InputError) as caught:
        load_config(Recipe, path)
    message = str(caught.value)
    assert "unknown key 'stepz'; did you mean 'steps'?" in message
    assert "'steps': " in message and "'many'" in message
    assert "'optimizer.lr': " in message
    assert "unknown key 'optimizer.beta'; did you mean 'betas'?" in message
    assert str(path) in message


def test_suggestions_reach_into_optional_sections(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'lr'"):
        load_config(Recipe, write(tmp_path, "fallback: {lrs: 1}"))


@pytest.mark.parametrize("override", ["steps", "=3", "steps.deep=3", "steps=[1"])
def test_malformed_overrides_are_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(InputError, match="--set"):
        load_config(Recipe, write(tmp_path, "steps: 5"), [override])


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "steps: 5\n\tname: x"])
def test_files_that_are_no_mapping_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"recipe\.yaml"):
        load_config(Recipe, write(tmp_path, text))


@pytest.mark.parametrize("text", ["a: [", "steps: 5\n\tname: x", "a: b: c", "a: \0"])
def test_a_syntax_error_is_one_sentence(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"not valid YAML: .+") as caught:
        load_config(Recipe, write(tmp_path, text))
    with pytest.raises(InputError, match=r"not valid YAML: .+") as given:
        load_config(Recipe, write(tmp_path, ""), ["steps=[1"])
    assert "\n" not in str(caught.value) + str(given.value)


def test_where_a_syntax_error_is_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="in line 2, column 1"):
        load_config(Recipe, write(tmp_path, "steps: 5\n\tname: x"))


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
def test_numbers_are_finite(tmp_path: Path, value: str) -> None:
    with pytest.raises(InputError, match=r"'optimizer\.betas\.0': input should be a finite number"):
        load_config(Recipe, write(tmp_path, f"optimizer: {{betas: [{value}, 0]}}"))


def test_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path, "")
    with pytest.raises(InputError, match=r"did you mean .*recipe\.yaml"):
        load_config(Recipe, tmp_path / "recipes.yaml")


def test_configurations_are_frozen() -> None:
    with pytest.raises(Exception, match="frozen"):
        Recipe().steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "override", "where"),
    [
        ("{}", "nonsense=1", "--set"),
        ("{}", "optimizer.betas=[1, x]", "--set"),
        ("{}", "fallback={betas: [1, x]}", "--set"),
        ("optimizer: {lr: 1}", "optimizer=3", "--set"),
        ("fallback: {}", "fallback.lr=-1", "--set"),
        ("optimizer: {betas: [1, x]}", "steps=3", "recipe.yaml"),
        ("steps: x", "optimizer.lr=-1", "--set, recipe.yaml"),
        ("{}", "source.size=-1", "--set, recipe.yaml"),  # and the file lacks the path
    ],
)
def test_who_gave_a_wrong_value_is_blamed(
    tmp_path: Path, text: str, override: str, where: str
) -> None:
    with pytest.raises(InputError) as caught:
        load_config(Recipe, write(tmp_path, text), [override])
    assert str(caught.value.where).replace(f"{tmp_path}/", "") == where


@pytest.mark.parametrize("value", ["&a {b: *a}", "&a [{b: *a}]", "[" * 3000, "{a: " * 3000])
def test_yaml_that_refers_to_itself_or_nests_without_end_is_refused(
    tmp_path: Path, value: str
) -> None:
    with pytest.raises(InputError, match=r"recipe\.yaml"):
        load_config(Recipe, write(tmp_path, f"optimizer: {value}"))
    with pytest.raises(InputError, match="--set"):
        load_config(Recipe, write(tmp_path, "{}"), [f"optimizer={value}"])
