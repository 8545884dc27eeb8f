"""One unit more or less moves no other unit, in a private run."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from fedtune_simulations.setting import silos_of
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from fedtune.cli.main import main
from fedtune.config.federation import PartitionConfig
from fedtune.config.load import load_config
from fedtune.config.schema import RunConfig
from fedtune.data.examples import ExampleSet, features
from fedtune.data.load import Splits, hold_out, load_splits
from fedtune.data.partition import partition
from fedtune.data.placement import chances
from fedtune.errors import InputError

PRIVATE = {"mode": "local", "noise_multiplier": 1.0, "held_out": "public"}
NO_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)
Unit = tuple[str, str, int]


def examples(units: list[Unit], *, named: bool) -> ExampleSet:
    """Rows of `units`: a name, a label and a number of rows each. Not `named`, words are all."""
    made = []
    for name, label, count in units:
        for number in range(count if named else 1):
            where = f"f:{len(made)}"
            made.append(
                {
                    **{"record_id": where, "unit_id": name if named else where, "silo": ""},
                    **{"where": where, "text": f"{name} said {number}", "label": label},
                }
            )
    return ExampleSet(datasets.Dataset.from_list(made, features("text_label")), "text_label", "f")


def placed(rows: ExampleSet, by: str, seed: int) -> dict[str, str]:
    """Where each text is: in the test set, the validation set or a silo."""
    skew = {"alpha": 2.0} if by != "iid" else {}
    config = RunConfig.model_validate(
        {
            "data": {"test_fraction": 0.3, "validation_fraction": 0.3},
            "training": {"eval_steps": 1},
            "federation": {"partition": {"by": by, "silos": 2, **skew}},
            "privacy": PRIVATE,
            "seed": seed,
        }
    )
    splits: Splits = hold_out(config, rows)
    assert splits.validation
    silos = partition(splits.train, config.federation.partition, seed, independent=config.private)
    found = dict.fromkeys(splits.test.rows["text"], "test")
    found |= dict.fromkeys(splits.validation.rows["text"], "validation")
    for name, chosen in silos.items():
        found |= dict.fromkeys(splits.train.select(chosen).rows["text"], name)
    return found


UNITS = st.lists(
    st.tuples(st.sampled_from([f"p{i}" for i in range(200)]), st.sampled_from("abc"),
              st.integers(1, 3)),
    min_size=15, max_size=30, unique_by=lambda unit: unit[0],
)  # fmt: skip


@settings(
    max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), phases=NO_SHRINKING
)
@given(UNITS, st.data(), st.sampled_from(["iid", "quantity", "dirichlet"]), st.booleans())
def test_a_unit_more_or_less_moves_no_other(units: list[Unit], data: Any, by: str, named: bool):
    gone = data.draw(st.integers(0, len(units) - 1))
    seed = data.draw(st.integers(0, 2**31 - 1))
    fewer = units[:gone] + units[gone + 1 :]
    try:
        whole = placed(examples(units, named=named), by, seed)
        less = placed(examples(fewer, named=named), by, seed)
        turned = placed(examples(fewer[::-1], named=named), by, seed)
    except InputError:  # a part stays empty
        assume(False)
    assert whole.items() >= less.items()
    assert less == turned


def test_places_are_even_and_of_one_purpose_tell_nothing_of_another():
    rows = examples([(f"p{i}", "a", 1) for i in range(20_000)], named=True)
    test, silo = chances(rows, 0, "test"), chances(rows, 0, "silo")
    for found in (test, silo, chances(rows, 1, "test")):
        counts, _ = np.histogram(found, bins=10, range=(0, 1))
        assert counts.sum() == 20_000
        assert np.abs(counts - 2000).max() < 5 * np.sqrt(1800)
    assert abs(np.corrcoef(test, silo)[0, 1]) < 5 / np.sqrt(20_000)
    assert abs(np.corrcoef(test, chances(rows, 1, "test"))[0, 1]) < 5 / np.sqrt(20_000)


def test_shares_are_kept_about():
    rows = examples([(f"p{i}", "ab"[i % 2], 1) for i in range(9000)], named=True)
    for by in ("iid", "quantity", "dirichlet"):
        skew = {"alpha": 1e6} if by != "iid" else {}
        config = PartitionConfig.model_validate({"by": by, "silos": 9, **skew})
        sizes = [len(r) for r in partition(rows, config, 3, independent=True).values()]
        assert sum(sizes) == 9000
        assert max(abs(size - 1000) for size in sizes) < 5 * np.sqrt(1000)


def run(tmp_path: Path, patients: range, *more: str) -> list[str]:
    rows = [{"text": f"t{i} {turn}", "label": "xy"[i % 2], "who": f"p{i}"} for i in patients
            for turn in range(2)]  # fmt: skip
    file = tmp_path / f"{patients.start}-{patients.stop}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "run"
    arguments = ("task={name: sequence_classification, labels: [x, y]}", f"output.dir={folder}",
                 f"data={{source: files, train_files: [{file}], columns: {{privacy_unit: who}}}}",
                 "privacy={mode: local, noise_multiplier: 1.0, delta: 0.001}",
                 "training={max_steps: 1, batch_size: 4}", *more)  # fmt: skip
    config = tmp_path / "c.yaml"
    config.write_text("seed: 5\n")
    return ["simulate", str(config), *arguments]


@pytest.mark.parametrize("by", ["iid", "quantity", "dirichlet"])
def test_a_patient_more_moves_nobody_in_a_run(by: str, tmp_path: Path):
    """The silos of a config file's data, before and after a patient is put in front."""
    found = []
    for patients in (range(1, 40), range(40)):
        skew = ", alpha: 2.0" if by != "iid" else ""
        more = (f"federation={{rounds: 1, partition: {{by: {by}, silos: 2{skew}}}}}",)
        config = load_config(tmp_path / "c.yaml", run(tmp_path, patients, *more)[2:])
        rows = load_splits(config).train
        silos = silos_of(config, rows)
        found.append({text: n for n, at in silos.items() for text in rows.select(at).rows["text"]})
    less, whole = found
    assert {text: silo for text, silo in whole.items() if not text.startswith("t0 ")} == less


def test_what_would_move_a_patients_other_rows_is_refused(tmp_path: Path, capsys: Any):
    more = ("federation={partition: {by: dirichlet, silos: 2}}", "privacy.unit=record")
    assert main(run(tmp_path, range(40), *more)) == 2
    assert "first row" in capsys.readouterr().err


def test_a_part_that_stays_empty_is_refused(tmp_path: Path, capsys: Any):
    for more, says in (
        (("federation={partition: {by: iid, silos: 30}}",), "silos stay empty"),
        (("federation={partition: {by: iid, silos: 2}}", "data.test_fraction=0.0001"), "test set"),
    ):
        assert main(run(tmp_path, range(40), *more)) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
