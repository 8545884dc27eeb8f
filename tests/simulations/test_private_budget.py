"""The ledger and a federation's run: what is refused stays refused, what is repeated counts."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fedtune_client.silo import own_words_only
from fedtune_simulations.events import Working
from fedtune_simulations.simulate import simulate

from fedtune.cli.main import main
from fedtune.config.load import load_config
from fedtune.errors import InputError, RunFailedError
from fedtune.privacy.accounting import epsilon
from fedtune.privacy.events import GaussianEvent
from fedtune.privacy.ledger import Ledger, ledger_path
from fedtune.training.central import train

CONFIG = """
data: {embedded_patients: 40}
training: {max_steps: 1, batch_size: 4}
federation: {rounds: 2, partition: {by: iid, silos: 2}}
privacy: {mode: local, noise_multiplier: 1.0, accountant: rdp, delta: 0.001}
"""


def run(folder: Path, *options: str) -> int:
    config = folder.parent / "c.yaml"
    config.write_text(CONFIG)
    return main(["simulate", str(config), f"output.dir={folder}", "--no-compare", *options])


def told(folder: Path) -> dict[str, float]:
    return dict(json.loads((folder / "privacy.json").read_text())["promise"])


def test_a_refused_run_can_not_go_on_as_if_it_had_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    first, second = tmp_path / "first", tmp_path / "second"
    assert run(first) == 0
    spent = told(first)["second_accountant"]["epsilon"]  # type: ignore[index]
    assert main(["budget", "set", "--epsilon", str(1.1 * spent), "--delta", "0.001"]) == 0
    capsys.readouterr()
    for more in (["--dry-run"], [], []):
        assert run(second, *more) == 2
        assert "the privacy budget doesn't allow this run (silo silo-0)" in capsys.readouterr().err
        assert not second.exists()
    assert charged() == of_each(2)
    assert run(second, "--resume") == 2
    assert "no run to resume" in capsys.readouterr().err


def test_a_round_that_may_have_been_sent_twice_counts_twice(tmp_path: Path):
    folder = tmp_path / "run"
    assert run(folder) == 0
    before = told(folder)["epsilon"]
    assert run(folder, "--resume") == 0  # finished: nothing more is charged, the row stays known
    assert told(folder)["epsilon"] == before
    ledger = json.loads((folder / "privacy.json").read_text())["parties"]["silo-0"]["ledger"]
    assert len(ledger["hash"]) == 64
    shutil.rmtree(folder / "checkpoints" / "round-000002")
    assert run(folder, "--resume") == 0
    assert told(folder)["epsilon"] > before


def charged() -> dict[str, int]:
    """The steps that each silo was charged."""
    steps: dict[str, int] = {}
    for row in Ledger.open(ledger_path()).charges():
        whose = row.body["purpose"]
        steps[whose] = steps.get(whose, 0) + sum(e["count"] for e in row.body["events"])
    return steps


def of_each(steps: int) -> dict[str, int]:
    return {"silo silo-0": steps, "silo silo-1": steps}


@pytest.mark.parametrize(
    ("lost", "paid"), [("round-000002", 2 + 1), ("", 2 + 2)], ids=["the last", "all"]
)
def test_rounds_whose_checkpoint_is_gone_are_paid_again(tmp_path: Path, lost: str, paid: int):
    folder = tmp_path / "run"
    assert run(folder) == 0
    assert charged() == of_each(2)
    shutil.rmtree(folder / "checkpoints" / lost)
    assert run(folder, "--resume") == 0
    assert charged() == of_each(paid)
    facts = json.loads((folder / "privacy.json").read_text())["parties"]
    assert {party["steps_released"] for party in facts.values()} == {paid}


def left() -> int:
    """The rounds that were paid for and of which nothing was seen."""
    rows = Ledger.open(ledger_path()).export()
    return [int(row["left"]) for row in rows if row["kind"] == "position"][-1]


def test_copies_of_a_killed_federation_pay_for_the_rounds_that_they_take_again(tmp_path: Path):
    rounds, more = 4, "federation.rounds=4"
    folder, config = tmp_path / "run", tmp_path / "c.yaml"
    config.write_text(CONFIG)
    command = ["simulate", str(config), f"output.dir={folder}", "--no-compare", more]
    process = subprocess.Popen(
        [sys.executable, "-m", "fedtune", *command],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not ((folder / "charged.json").exists() and left() == rounds - 2):  # in its second round
        assert process.poll() is None, "ended before its second round"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert [p.name for p in (folder / "checkpoints").glob("round-*[0-9]")] == ["round-000001"]
    shutil.copytree(folder, tmp_path / "second")
    assert run(folder, more, "--resume") == 0
    assert charged() == of_each(rounds + 1)  # the interrupted round's deltas may have been sent
    assert run(tmp_path / "second", more, "--resume") == 0
    assert charged() == of_each(rounds + 1 + 3)
    for copy in (folder, tmp_path / "second"):
        assert run(copy, more, "--resume") == 0  # finished: nothing is charged, all is told
        facts = json.loads((copy / "privacy.json").read_text())["parties"]
        assert {party["steps_released"] for party in facts.values()} == {rounds + 1 + 3}
    assert charged() == of_each(rounds + 1 + 3)


def test_the_ledger_hears_of_a_round_before_its_silos_do(tmp_path: Path):
    config = tmp_path / "c.yaml"
    config.write_text(CONFIG)
    seen: list[tuple[int | None, int]] = []

    def at_work(event: Working) -> None:
        seen.append((event.round, left()))

    simulate(load_config(config), tmp_path / "run", compare=False, on_work=at_work)
    assert seen == [(1, 1), (1, 1), (2, 0), (2, 0)]


def stop(event: object) -> None:
    raise RunFailedError("stopped in its first step")


@pytest.mark.parametrize("other", ["train", "simulate"])
def test_what_was_paid_for_steps_pays_for_no_rounds_and_the_other_way_round(
    tmp_path: Path, other: str
):
    config = tmp_path / "c.yaml"
    config.write_text(CONFIG)
    settings, begun, folder = load_config(config), tmp_path / "begun", tmp_path / "run"
    if other == "simulate":
        with pytest.raises(RunFailedError):
            simulate(settings, begun, compare=False, on_work=stop)
    else:
        with pytest.raises(RunFailedError):
            train(settings, begun, listeners=[stop])
    assert left() == 1  # a step of `train`, or a round of `simulate`
    mine, last = ("train", "step-00000001") if other == "simulate" else ("simulate", "round-000002")
    command = [mine, str(config), f"output.dir={folder}"]
    command += ["--no-compare"] if mine == "simulate" else []
    assert main(command) == 0
    paid = charged()
    shutil.rmtree(folder / "checkpoints" / last)
    forged = [json.loads((at / "charged.json").read_text()) for at in (folder, begun)]
    (folder / "charged.json").write_text(json.dumps(forged[0] + forged[1]))
    assert main([*command, "--resume"]) == 0
    more = {"train": 1} if mine == "train" else of_each(1)
    assert charged() == {whose: steps + more.get(whose, 0) for whose, steps in paid.items()}


def test_a_round_that_calls_itself_later_than_it_is_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "run"
    assert run(folder) == 0
    last = folder / "checkpoints" / "round-000002" / "round.json"
    facts = json.loads(last.read_text())
    last.write_text(json.dumps({**facts, "reports": facts["reports"][:1]}))
    assert run(folder, "--resume") == 2
    assert "checkpoint is damaged (round 2, 1 reports)" in capsys.readouterr().err


def test_a_run_whose_ledger_is_gone_is_charged_whole_when_it_goes_on(tmp_path: Path):
    folder = tmp_path / "run"
    assert run(folder) == 0
    shutil.rmtree(folder / "checkpoints" / "round-000002")
    for file in ledger_path().parent.iterdir():
        file.unlink()
    assert run(folder, "--resume") == 0
    assert charged() == of_each(2 + 1)  # round 2 twice
    facts = json.loads((folder / "privacy.json").read_text())["parties"]
    assert {party["steps_released"] for party in facts.values()} == {2 + 1}


def test_one_silo_without_budget_costs_the_others_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    many, few = 40, 8  # one of few patients is in every second batch

    def row(site: str, number: int) -> str:
        note = {"prompt": f"{site} {number}.", "completion": " Well.", "id": f"{site}{number}"}
        return json.dumps({**note, "site": site}) + "\n"

    rows, held = tmp_path / "rows.jsonl", tmp_path / "held.jsonl"
    rows.write_text("".join(row(s, i) for s, n in (("a", many), ("b", few)) for i in range(n)))
    held.write_text(row("a", many))
    files = {"train_files": [str(rows)], "test_files": [str(held)]}
    folder = tmp_path / "run"
    more = (
        "data=" + json.dumps({"source": "files", "columns": {"privacy_unit": "id"}, **files}),
        "federation.partition={by: column, column: site}",
    )
    spent = {n: epsilon([GaussianEvent(4 / n, 1.0, 2)], 1e-3, "pld") for n in (many, few)}
    assert spent[many] < spent[few]
    between = str((spent[many] + spent[few]) / 2)
    assert main(["budget", "set", "--epsilon", between, "--delta", "0.001"]) == 0
    assert run(folder, *more) == 2
    err = capsys.readouterr().err
    assert "doesn't allow this run (silo b)" in err
    assert "nothing was charged" in err
    assert charged() == {}
    assert not folder.exists()
    assert main(["budget", "set", "--epsilon", "1000", "--delta", "0.001"]) == 0
    assert run(folder, *more) == 0
    assert charged() == {"silo a": 2, "silo b": 2}


def test_the_coordinators_record_can_not_be_deleted_for_a_fresh_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "run"
    central = ["privacy={mode: central, noise_multiplier: 1.0, delta: 0.001}"]
    assert run(folder, *central) == 0
    shutil.rmtree(folder / "checkpoints")
    assert run(folder, *central, "--resume") == 2
    assert "record of released rounds" in capsys.readouterr().err


def test_a_budget_is_not_passed_by_in_silence_where_silos_are_the_unit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder, central = tmp_path / "run", "privacy={mode: central, noise_multiplier: 1, delta: 0.001}"
    assert run(folder, central, "--dry-run") == 0
    assert main(["budget", "set", "--epsilon", "1", "--delta", "0.001"]) == 0
    for more in (["--dry-run"], []):
        capsys.readouterr()
        assert run(folder, central, *more) == 2
        err = capsys.readouterr().err
        assert "a budget is set on this machine" in err
        assert "privacy.outside_budget: true" in err
        assert not folder.exists()
    assert run(folder, central, "privacy.outside_budget=true") == 0
    assert charged() == {}
    assert "charged to no ledger" in (folder / "privacy.md").read_text()


def test_an_error_on_private_rows_keeps_its_text_at_home():
    private: Any = object()
    with pytest.raises(RunFailedError) as told, own_words_only(private):
        raise KeyError("Mrs Miller, HIV positive")
    assert "Miller" not in str(told.value)
    assert "KeyError" in str(told.value)
    with pytest.raises(InputError, match="ours"), own_words_only(private):
        raise InputError("ours")
    with pytest.raises(KeyError), own_words_only(None):
        raise KeyError("no promise was made")


def test_json_tells_no_exact_count_of_private_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(tmp_path / "run", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert "data" not in told
    assert "silos" not in told
    assert told["privacy"]["promise"]["unit"] == "patient"
