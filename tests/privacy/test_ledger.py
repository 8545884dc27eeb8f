"""The budget ledger: refused is refused whatever happens between, and no edit goes unseen."""

import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtune.errors import InputError
from fedtune.privacy.accounting import epsilon
from fedtune.privacy.events import GaussianEvent
from fedtune.privacy.exposure import exposures, of_group
from fedtune.privacy.fingerprints import People
from fedtune.privacy.joining import Met
from fedtune.privacy.ledger import Ledger, Request, check_ledger, ledger_path
from fedtune.privacy.told import rounded_down, rounded_up

ROOT = Path(__file__).parents[2]
EVENT = GaussianEvent(0.1, 1.0, 10)
DELTA = 1e-5
ONE = epsilon([EVENT], DELTA, "pld")
TWO = epsilon([EVENT, EVENT], DELTA, "pld")


def people(records: range, *, patients: range | None = None) -> People:
    return People(
        np.array(records, dtype=np.uint64), np.array(patients or range(0), dtype=np.uint64) + 1000
    )


def charge(ledger: Ledger, run: str, who: People, *, event: GaussianEvent = EVENT, **more):
    unit = more.pop("unit", "patient" if len(who.patients) else "record")
    asked = request(run, who, unit=unit, events=[event], **more)
    return ledger.charge([asked])[0]


def request(run: str, who: People, **more) -> Request:
    given = {"unit": "record", "events": [EVENT], **more}
    return Request(run=run, purpose="train", people=who, plan={}, delta=DELTA, **given)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    opened = Ledger.open(tmp_path / "kept" / "ledger.sqlite")
    opened.set_budget((ONE + TWO) / 2, DELTA)
    return opened


def test_the_second_run_on_the_same_people_is_refused_with_all_figures_after_a_restart(ledger):
    first = charge(ledger, "run-1", people(range(50)))
    assert first.after.pld == pytest.approx(ONE)
    assert (first.before.pld, first.earlier_runs) == (0.0, ())
    with pytest.raises(InputError) as refusal:
        charge(Ledger.open(ledger.file.path), "run-2", people(range(50)))
    left = (TWO - ONE) / 2
    up, down = rounded_up, rounded_down
    for told in (f"{up(ONE)} was spent", "run-1", f"{down(left)} is left", f"be {up(TWO)}"):
        assert told in str(refusal.value)
    assert [row.body["run"] for row in ledger.charges()] == ["run-1"]


def test_other_people_pay_for_themselves_and_grown_data_for_those_who_were_there(ledger):
    charge(ledger, "run-1", people(range(50)))
    assert charge(ledger, "run-2", people(range(50, 99))).after.pld == pytest.approx(ONE)
    for grown in (range(51), range(49, 99), range(98, 150)):
        with pytest.raises(InputError, match="budget"):
            charge(ledger, "run-3", people(grown))


def test_without_a_budget_everything_is_counted_and_only_a_limit_refuses(tmp_path: Path):
    ledger = Ledger.open(tmp_path / "l.sqlite")
    for run in "abc":
        last = charge(ledger, run, people(range(9)))
    assert last.after.pld == pytest.approx(epsilon([EVENT] * 3, DELTA, "pld"))
    assert last.earlier_runs == ("a", "b")
    assert ledger.spent(DELTA)["record"].epsilon == last.after
    with pytest.raises(InputError, match="is left"):
        charge(ledger, "d", people(range(9)), limit=last.after.pld)
    with pytest.raises(InputError, match="all together would be inf"):
        charge(ledger, "e", people(range(9)), event=GaussianEvent(1.0, 1e-160))


def test_a_limit_can_only_lower_the_budget(ledger):
    charge(ledger, "run-1", people(range(9)), limit=1e9)
    with pytest.raises(InputError, match="budget"):
        charge(ledger, "run-2", people(range(9)), limit=1e9)


def test_a_delta_that_would_publish_somebody_is_refused(ledger):
    ledger.set_budget(100.0, 0.1)
    with pytest.raises(InputError, match="no less than one over"):
        charge(ledger, "run", people(range(10)))


@pytest.mark.parametrize(("eps", "delta"), [(0, 0.1), (-1, 0.1), (np.inf, 0.1), (1, 0), (1, 1)])
def test_what_is_no_budget_is_refused(ledger, eps: float, delta: float):
    with pytest.raises(InputError, match="no budget"):
        ledger.set_budget(eps, delta)


def test_a_patient_is_known_by_their_words_when_ids_are_new(ledger):
    charge(ledger, "run-1", people(range(20), patients=range(20)))
    with pytest.raises(InputError, match="budget"):
        charge(ledger, "run-2", people(range(20), patients=range(500, 520)))


def test_records_charged_first_count_for_their_patient_with_all_that_were_there(tmp_path: Path):
    ledger = Ledger.open(tmp_path / "l.sqlite")
    charge(ledger, "records", people(range(12)))
    owners = People(np.arange(12, dtype=np.uint64), np.repeat(np.arange(4, dtype=np.uint64), 3))
    later = charge(ledger, "patients", owners)
    assert later.before.pld == pytest.approx(epsilon([of_group(EVENT, 3)], DELTA, "pld"))
    both = epsilon([of_group(EVENT, 3), EVENT], DELTA, "pld")
    assert later.after.pld == pytest.approx(both)


def test_patients_charged_first_are_met_by_a_run_on_their_records(tmp_path: Path):
    ledger = Ledger.open(tmp_path / "l.sqlite")
    owners = People(np.arange(12, dtype=np.uint64), np.repeat(np.arange(4, dtype=np.uint64), 3))
    charge(ledger, "patients", owners)
    strangers = charge(ledger, "others", people(range(50, 60)))
    assert strangers.earlier_runs == ()
    later = charge(ledger, "records", people(range(2, 60)))
    both = epsilon([of_group(EVENT, 3), EVENT], DELTA, "pld")
    assert later.after.pld == pytest.approx(both)
    assert later.earlier_runs == ("patients", "others")


def rows(records: list[int], patients: list[int] | None = None) -> People:
    return People(np.array(records, np.uint64), np.array(patients or [], np.uint64))


def group(*units: int) -> float:
    """Epsilon of as many charges, in each of which somebody is so many units."""
    return epsilon([of_group(EVENT, each) for each in units if each], DELTA, "pld")


# one person's words 1, 2, 3 beside those of the others
@pytest.mark.parametrize(
    ("first", "second", "unit", "counted"),
    [
        (rows([1, 2, 3], [9, 9, 9]), rows([1, 2, 3], [5, 6, 7]), "patient", group(1, 3)),
        (rows([1, 2, 3], [5, 6, 7]), rows([1, 2, 3], [9, 9, 9]), "patient", group(3, 1)),
        (rows([1, 2, 3], [9, 9, 9]), rows([1, 2, 3], [8, 8, 8]), "patient", group(1, 1)),
        (rows([1], [9]), rows([1, 1, 1], [5, 6, 7]), "patient", group(1, 3)),
        (rows([1], [9]), rows([1, 1, 1], [9, 6, 7]), "patient", group(1, 3)),
        (rows([1], [9]), rows([1, 1, 1], [5, 6, 7]), "record", group(1, 3)),
        (rows([1], [9]), rows([1, 1, 1]), "record", group(1, 3)),
        (rows([1, 2], [9, 9]), rows([1, 1, 2]), "record", group(1, 3)),
        (rows([1]), rows([1, 1, 1]), "record", group(1, 3)),
        (rows([5]), rows([1, 1, 1]), "record", group(3)),
        (rows([1] * 9, [*range(9)]), rows([1] * 9, [*range(9)]), "patient", group(1, 1)),
        (rows([1] * 9, [*range(9)]), rows([1] * 9 + [4], [*range(10)]), "patient", group(1, 1)),
        (rows([1] * 9, [*range(9)]), rows([1], [20]), "patient", group(1, 1)),
        (rows([1] * 9, [*range(9)]), rows([1] * 9, [*range(1, 10)]), "patient", group(1, 2)),
    ],
    ids=[
        "a patient's visits become units", "visits become a patient", "a new id",
        "copies under new ids", "copies beside the old id", "records under new ids",
        "records without ids", "one of two records twice", "records known as records",
        "records of nobody known", "patients who share words", "and one more without them",
        "somebody new has words that many share", "somebody new beside them",
    ],
)  # fmt: skip
def test_one_person_counts_as_often_as_they_may_be_in_a_step(
    tmp_path: Path, first: People, second: People, unit: str, counted: float
):
    ledger = Ledger.open(tmp_path / "l.sqlite")
    charge(ledger, "first", first)
    assert charge(ledger, "second", second, unit=unit).after.pld == pytest.approx(counted)
    spent = [most.epsilon.pld for most in ledger.spent(DELTA).values()]
    assert max(spent) == pytest.approx(max(counted, ONE))


def test_records_of_a_patient_count_for_one_person_whatever_ids_they_get_later(tmp_path: Path):
    ledger = Ledger.open(tmp_path / "l.sqlite")
    charge(ledger, "first", rows([1, 2, 3], [9, 9, 9]), unit="record")
    visits = charge(ledger, "second", rows([1, 2, 3], [5, 6, 7]), unit="patient")
    assert visits.after.pld == pytest.approx(group(3, 3))
    assert ledger.spent(DELTA)["patient"].epsilon.pld == pytest.approx(group(3, 3))


def test_silos_of_one_run_that_share_words_do_not_multiply(tmp_path: Path):
    ledger = Ledger.open(tmp_path / "l.sqlite")
    silos = rows([1, 1], [1, 2]), rows([1, 1, 1], [3, 4, 5])
    both = ledger.charge([request("run", silo, unit="patient") for silo in silos])
    assert [charge.after.pld for charge in both] == pytest.approx([group(1), group(1, 1)])


def test_a_group_event_bounds_the_sum_of_its_members():
    """A patient with 3 records, each taken with chance q: the mixture of binomial(3, q) shifts."""
    rate, noise, records = 0.2, 2.0, 3
    grid = np.linspace(-40, 60, 200_001)

    def density(mean: float) -> np.ndarray:
        return np.exp(-(((grid - mean) / noise) ** 2) / 2) / (noise * np.sqrt(2 * np.pi))

    chances = [(1 - rate) ** 3, 3 * rate * (1 - rate) ** 2, 3 * rate**2 * (1 - rate), rate**3]
    true = sum(c * density(j) for j, c in enumerate(chances)), density(0.0)
    group = of_group(GaussianEvent(rate, noise), records)
    assert group.noise_multiplier == pytest.approx(noise / 3)
    scale = noise / group.noise_multiplier
    far = (1 - group.sample_rate) * density(0.0) + group.sample_rate * density(scale)
    bound = far, density(0.0)
    for eps in (0.0, 0.1, 0.5, 1.0, 2.0):
        for one, other in ((0, 1), (1, 0)):
            lost = [
                np.maximum(p[one] - np.exp(eps) * p[other], 0).sum() * (grid[1] - grid[0])
                for p in (true, bound)
            ]
            assert lost[0] <= lost[1] + 1e-12
    assert max(p.max() for p in true) > 0  # the grid holds them


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_exposure_is_the_largest_over_people_one_by_one(data: st.DataObject):
    subsets = st.sets(st.integers(0, 7), min_size=1)
    sets = data.draw(st.lists(subsets, min_size=1, max_size=5))
    events = [GaussianEvent(0.5, 2.0, count) for count in (1, 2, 4, 8, 16)]
    nobody = np.zeros(0, np.uint64)
    charges = [
        Met("record", People(np.array(sorted(s), dtype=np.uint64), nobody), (e,), "run")
        for s, e in zip(sets, events, strict=False)
    ]
    want = max(
        epsilon([e for s, e in zip(sets, events, strict=False) if who in s], DELTA, "rdp")
        for who in sets[-1]
    )
    found = exposures(charges, charges[-1])["record"]
    assert found.units == len(sets[-1])
    assert found.figures(DELTA).rdp == pytest.approx(want)


CHARGER = """
import sys
from pathlib import Path
import numpy as np
from fedtune.errors import InputError
from fedtune.privacy.events import GaussianEvent
from fedtune.privacy.fingerprints import People
from fedtune.privacy.ledger import Ledger, Request

path, name, times = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
people = People(np.arange(50, dtype=np.uint64), np.zeros(0, np.uint64))
print("ready", flush=True)
sys.stdin.readline()
done = 0
for number in range(times):
    try:
        event = GaussianEvent(0.1, 1.0, 10)
        request = Request(
            run=f"{name}-{number}", purpose="train", unit="record", people=people,
            events=[event], plan={}, delta=1e-5,
        )
        Ledger.open(path).charge([request])
        done += 1
        print("charged", flush=True)
    except InputError as error:
        assert "budget" in str(error), error
print(done, flush=True)
sys.stdin.readline()
"""


def started(path: Path, name: str, times: int) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", CHARGER, str(path), name, str(times)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_processes_at_once_spend_no_more_than_the_budget(tmp_path: Path):
    path = tmp_path / "ledger.sqlite"
    allowed = 5
    spent = epsilon([EVENT] * allowed, DELTA, "pld")
    Ledger.open(path).set_budget(spent * 1.001, DELTA)
    both = [started(path, name, allowed) for name in "ab"]
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    ended = [process.communicate("end\n", timeout=120)[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(int(lines[-1]) for lines in ended) == allowed
    ledger = Ledger.open(path)
    assert len(ledger.charges()) == allowed
    assert ledger.spent(DELTA)["record"].epsilon.pld == pytest.approx(spent)
    assert ledger.verify() == []


def test_a_charge_stays_when_the_process_is_killed_before_its_first_step(ledger):
    process = started(ledger.file.path, "killed", 1)
    process.stdin.write("go\n")
    process.stdin.flush()
    assert process.stdout.readline() == "charged\n"
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    assert [row.body["run"] for row in ledger.charges()] == ["killed-0"]
    assert ledger.verify() == []
    with pytest.raises(InputError, match="budget"):
        charge(ledger, "again", people(range(50)))


def test_a_process_killed_inside_a_charge_leaves_all_of_it_or_nothing(tmp_path: Path):
    path = tmp_path / "ledger.sqlite"
    process = started(path, "run", 500)
    process.stdin.write("go\n")
    process.stdin.flush()
    process.stdout.readline()
    time.sleep(0.05)
    process.kill()
    told = process.communicate(timeout=60)[0].count("charged") + 1
    ledger = Ledger.open(path)
    assert ledger.verify() == []
    assert 0 <= len(ledger.charges()) - told <= 1


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ledger = Ledger.open(tmp_path_factory.mktemp("whole") / "ledger.sqlite")
    ledger.set_budget(50.0, DELTA)
    for number in range(4):
        charge(ledger, f"run-{number}", people(range(number + 3), patients=range(number + 3)))
    return ledger.file.path


def copied(path: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(path.parent, to)
    return to / path.name


def edited(path: Path, *statements: tuple) -> None:
    """Change the file as one would who has every right to it, but not the key."""
    connection = sqlite3.connect(path)
    names = connection.execute("SELECT name, sql FROM sqlite_master WHERE type='trigger'")
    triggers = names.fetchall()
    for name, _ in triggers:
        connection.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        connection.execute(*statement)
    for _, text in triggers:
        connection.execute(text)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM rows",
        "DELETE FROM blobs",
        "UPDATE rows SET hash=''",
        "UPDATE blobs SET hash=''",
    ],
)
def test_rows_can_be_added_only(written, tmp_path: Path, statement: str):
    connection = sqlite3.connect(copied(written, tmp_path / "copy"))
    with pytest.raises(sqlite3.IntegrityError, match="only ever added"):
        connection.execute(statement)
    connection.close()


def body_of(path: Path, row: int) -> dict:
    connection = sqlite3.connect(path)
    found = connection.execute("SELECT body FROM rows WHERE number = ?", (row,)).fetchone()
    connection.close()
    return json.loads(found[0])


@settings(max_examples=60, deadline=None)
@given(row=st.integers(1, 5), pick=st.integers(0, 10**6), new=st.floats(0.001, 1e6))
def test_any_edited_field_of_any_row_is_found_by_its_number(
    written, tmp_path_factory, row, pick, new
):
    path = copied(written, tmp_path_factory.getbasetemp() / "edited")
    body = body_of(path, row)
    field = sorted(body)[pick % len(body)]
    was = body[field]
    body[field] = new if new != was else new + 1
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    edited(path, ("UPDATE rows SET body = ? WHERE number = ?", (text, row)))
    assert row in {damage.row for damage in Ledger.open(path).verify()}
    with pytest.raises(InputError, match=f"row {row}: was edited"):
        charge(Ledger.open(path), "more", people(range(3)))


@settings(max_examples=30, deadline=None)
@given(first=st.integers(1, 5), second=st.integers(1, 5))
def test_rows_that_were_removed_or_changed_places_are_found(
    written, tmp_path_factory, first, second
):
    path = copied(written, tmp_path_factory.getbasetemp() / "moved")
    if first == second:
        edited(path, ("DELETE FROM rows WHERE number = ?", (first,)))
    else:
        swap = "UPDATE rows SET number = ? WHERE number = ?"
        edited(path, (swap, (99, first)), (swap, (first, second)), (swap, (second, 99)))
    found = {damage.row for damage in Ledger.open(path).verify()}
    assert found & {0, first}
    assert first == second or {first, second} <= found


@pytest.mark.parametrize("left", range(5))
def test_a_tail_that_was_cut_off_is_found_also_when_the_head_is_edited(written, tmp_path, left):
    path = copied(written, tmp_path / "cut")
    edited(
        path, ("DELETE FROM rows WHERE number > ?", (left,)),
("DELETE FROM blobs WHERE NOT EXISTS (SELECT 1 FROM rows WHERE instr(body, blobs.hash))",),
    )  # fmt: skip
    assert "there were 5 rows, the last are gone" in map(str, Ledger.open(path).verify())
    head = path.with_name(path.name + ".head")
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT hash FROM rows ORDER BY number").fetchall()
    connection.close()
    last = rows[-1][0] if rows else ""
    head.write_text(json.dumps({**json.loads(head.read_text()), "rows": left, "last": last}))
    assert "the head file was edited" in map(str, Ledger.open(path).verify())
    head.unlink()
    assert "the head file is gone or is not one" in map(str, Ledger.open(path).verify())


def test_edited_people_are_found(written, tmp_path: Path):
    path = copied(written, tmp_path / "people")
    edited(path, ("UPDATE blobs SET content = zeroblob(length(content)) WHERE rowid = 2",))
    assert any("were edited" in str(damage) for damage in Ledger.open(path).verify())
    path = copied(written, tmp_path / "people")
    edited(path, ("DELETE FROM blobs WHERE rowid = 2",))
    assert any("are gone" in str(damage) for damage in Ledger.open(path).verify())
    path = copied(written, tmp_path / "people")
    edited(path, ("INSERT INTO blobs VALUES ('00', x'00')",))
    assert any("belong to no row" in str(damage) for damage in Ledger.open(path).verify())


def test_missing_or_foreign_triggers_and_broken_files_are_found(written, tmp_path: Path):
    path = copied(written, tmp_path / "triggers")
    connection = sqlite3.connect(path)
    connection.execute("DROP TRIGGER no_DELETE_of_rows")
    connection.execute("CREATE TRIGGER mine AFTER INSERT ON rows BEGIN DELETE FROM blobs; END")
    connection.close()
    found = " ".join(map(str, Ledger.open(path).verify()))
    assert "no_DELETE_of_rows is gone" in found
    assert "not ours: mine" in found
    ledger = Ledger.open(copied(written, tmp_path / "triggers"))
    path.write_bytes(b"not a database at all" * 99)
    assert "can't be used" in str(ledger.verify()[0])
    with pytest.raises(InputError, match="can't be used"):
        Ledger.open(path)


@pytest.mark.parametrize("end", ["", ".key"])
def test_only_the_owner_may_read_the_ledger_and_its_key(ledger, end: str):
    file = ledger.file.path.with_name(ledger.file.path.name + end)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for mode in (0o640, 0o604, 0o660):
        file.chmod(mode)
        with pytest.raises(InputError, match=f"mode {mode:04o}"):
            Ledger.open(ledger.file.path)


@pytest.mark.parametrize("end", ["", ".key"])
def test_a_ledger_whose_part_is_gone_is_not_begun_anew(ledger, end: str):
    ledger.file.path.with_name(ledger.file.path.name + end).unlink()
    with pytest.raises(InputError, match="is gone"):
        Ledger.open(ledger.file.path)
    ledger.file.path.with_name(ledger.file.path.name + ".key").write_text("zz")
    ledger.file.path.with_name(ledger.file.path.name + ".key").chmod(0o600)
    with pytest.raises(InputError, match="not the key"):
        Ledger.open(ledger.file.path)


def test_where_the_ledger_lies(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/x")
    for name in ("FEDTUNE_LEDGER", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert ledger_path() == Path("/home/x/.local/share/fedtune/ledger.sqlite")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert ledger_path() == Path("/data/fedtune/ledger.sqlite")
    monkeypatch.setenv("FEDTUNE_LEDGER", "/else/l.sqlite")
    assert ledger_path() == Path("/else/l.sqlite")
    assert ledger_path("mine.sqlite") == Path("mine.sqlite")


def test_a_run_chooses_no_ledger_but_this_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    own, other = tmp_path / "own.sqlite", tmp_path / "other.sqlite"
    monkeypatch.setenv("FEDTUNE_LEDGER", str(own))
    check_ledger(None)
    check_ledger(str(own))
    (tmp_path / "link").symlink_to(tmp_path)
    check_ledger(str(tmp_path / "link" / "own.sqlite"))
    with pytest.raises(InputError, match=r"FEDTUNE_LEDGER.*own\.sqlite"):
        check_ledger(str(other))
    monkeypatch.delenv("FEDTUNE_LEDGER")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    check_ledger(str(other))
    assert not (tmp_path / "fedtune").exists()  # looking made none
    users = Ledger.open(ledger_path())
    check_ledger(str(other))  # for who keeps one a project
    users.set_budget(3.0, DELTA)
    with pytest.raises(InputError, match="the budget was set in"):
        check_ledger(str(other))
