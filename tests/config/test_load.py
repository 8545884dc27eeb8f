from pathlib import Path

import pytest

from fedtune.config.cases import CASES
from fedtune.config.load import load_config, save_config
from fedtune.config.reference import reference, starter
from fedtune.config.schema import RunConfig
from fedtune.errors import InputError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_no_file_gives_the_defaults() -> None:
    assert load_config(None, []) == RunConfig()


def test_an_override_wins_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "training:\n  learning_rate: 1e-2\n  batch_size: 4\n")
    config = load_config(path, ["training.learning_rate=1e-3", "output.dir=runs/x"])
    assert config.training.learning_rate == 1e-3
    assert config.training.batch_size == 4
    assert config.output.dir == "runs/x"


def test_every_problem_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "training:\n  learning_rat: 1e-2\n  batch_size: many\nprivacy:\n  mode: locl\n",
    )
    with pytest.raises(InputError) as caught:
        load_config(path, ["seed=-1"])
    message = str(caught.value)
    assert f"{path}:2: training.learning_rat: unknown field" in message
    assert "did you mean `training.learning_rate`?" in message
    assert f"{path}:3: training.batch_size: 'many'" in message
    assert f"{path}:5: privacy.mode: 'locl' is not allowed" in message
    assert "command line: seed" in message


def test_a_field_of_another_section_is_found(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"did you mean `training\.learning_rate`"):
        load_config(write(tmp_path, "learning_rate: 0.1\n"))


def test_a_union_is_one_problem(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_config(write(tmp_path, "adapter:\n  target_modules: 3\n"))
    assert str(caught.value).count("adapter.target_modules") == 1
    assert "text or a list" in str(caught.value)


LABELLED = "data.format=text_label"
PROMPT = "data.label_prompt='a {label}'"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([LABELLED, "data.label_prompt=label"], "no `{label}`"),
        ([PROMPT], "`label_prompt` needs `format: text_label`"),
        ([LABELLED], "`data.label_prompt` to learn texts of a label"),
        (["task.labels=[a, b]"], "`data.label_prompt`"),
        (
            [LABELLED, PROMPT, "task.name=sequence_classification"],
            "`data.label_prompt` needs `task.name: causal_lm`",
        ),
    ],
)
def test_labels_that_nothing_would_read_are_refused(overrides: list[str], says: str) -> None:
    assert load_config(None, [LABELLED, PROMPT, "task.labels=[a, b]"]).task.labels == ["a", "b"]
    with pytest.raises(InputError) as caught:
        load_config(None, overrides)
    assert says in str(caught.value)


def test_a_duplicate_key_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run\.yaml:2.*duplicate"):
        load_config(write(tmp_path, "seed: 1\nseed: 2\n"))


def test_saved_and_loaded_is_equal(tmp_path: Path) -> None:
    config = load_config(None, ["federation.silo_ranks={a: 4}", "federation.aggregation=svd"])
    save_config(config, tmp_path / "deep" / "config.yaml")
    assert load_config(tmp_path / "deep" / "config.yaml") == config


@pytest.mark.parametrize("case", sorted(CASES))
def test_a_starter_file_is_valid_and_names_every_section(tmp_path: Path, case: str) -> None:
    config = load_config(write(tmp_path, starter(case)))
    assert config == RunConfig.model_validate(CASES[case].settings)


def test_the_reference_names_every_leaf_and_is_the_committed_page() -> None:
    text = reference()
    assert "| `federation.server_optimizer.tau` | number | `0.001` |" in text
    page = Path(__file__).parents[2] / "docs" / "config-reference.md"
    assert page.read_text() == text, "run `fedtune config reference > docs/config-reference.md`"


def test_the_hash_is_of_what_decides_the_result() -> None:
    plain = RunConfig().hash
    for waits in ("min_silos", "round_timeout_seconds"):
        assert RunConfig.model_validate({"federation": {waits: 7}}).hash == plain
    assert RunConfig.model_validate({"federation": {"engine": "ray"}}).hash == plain
    assert RunConfig.model_validate({"output": {"dir": "elsewhere"}}).hash == plain
    assert RunConfig.model_validate({"federation": {"rounds": 7}}).hash != plain
    assert RunConfig.model_validate({"seed": 7}).hash != plain
