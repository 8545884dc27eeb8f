"""A silo's part over messages: bounded, of one run, and one set of survivors a round."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from fedtune_client.once import Agreed, Drawn
from fedtune_client.secure import SecurePart
from fedtune_client.update import LocalUpdate
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedtune.config.privacy import PrivacyConfig
from fedtune.config.schema import RunConfig
from fedtune.errors import InputError
from fedtune.privacy.distributed import noisy_sum
from fedtune.secagg.abort import AbortError
from fedtune.secagg.coordinator import Coordinator
from fedtune.secagg.messages import write_set, write_terms
from fedtune.secagg.terms import Terms, choose
from fedtune.secagg.weighted import encoding_of
from fedtune.tensors import TensorSet
from tests.secagg.conftest import identities, identity_of, names

SILOS, RUN = names(4), "a" * 64
DELTA = TensorSet({"w": torch.full((6,), 0.001)})
CONFIG = RunConfig.model_validate(
    {"secure_aggregation": {"enabled": True, "bound": 0.01}, "federation": {"rounds": 3}}
)


@pytest.fixture(autouse=True)
def _flower_knows_a_task() -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def parts(folder: Path | None = None) -> dict[str, SecurePart]:
    return {
        silo: SecurePart(
            silo,
            CONFIG,
            RUN,
            identity_of(silo),
            identities(SILOS),
            3,
            0,
            Agreed(folder / f"{silo}.jsonl" if folder else None),
        )
        for silo in SILOS
    }


def terms(attempt: int = 0, **changes: object) -> Terms:
    words = encoding_of(CONFIG, DELTA.spec, 4, (0,)).words
    given = {"run": RUN, "round_number": 1, "attempt": attempt, "silos": SILOS, "words": words}
    given |= {"halvings": (0,), "colluders": 0, "dropouts": 0}
    return choose(**{**given, **changes})  # type: ignore[arg-type]


def asked(step: str, of: Terms, **content: object) -> Message:
    record = {"step": step, "context": of.digest.hex(), **content}
    message = RecordDict({"secure": ConfigRecord(record)})  # type: ignore[arg-type]
    made = Message(message, dst_node_id=1, message_type="query.secure")
    vars(made.metadata).update(_message_id="1", _src_node_id=1)
    return made


def masked(there: dict[str, SecurePart], of: Terms) -> Coordinator:
    """Every stage up to the survivors; `there` are all silos' parts."""
    machine = Coordinator(of, identities(SILOS))
    for silo, part in there.items():
        told = part.answer(asked("advertise", of, terms=write_terms(of))).content["secure"]
        machine.add_advert(silo, told["advert"])
    for silo, adverts in machine.close_adverts().items():
        told = there[silo].answer(asked("share", of, adverts=adverts)).content["secure"]
        machine.add_shares(silo, dict(zip(told["silos"], told["sealed"], strict=True)))
    shared, held = machine.close_shares()
    for silo, shares in held.items():
        told = {"shared": shared, "silos": [*shares], "sealed": [*shares.values()]}
        there[silo].check_due(asked("", of), of.round, DELTA.spec)
        there[silo].masked(asked("", of, **told), LocalUpdate(DELTA, 5), DELTA.spec)
    return machine


def test_a_round_tried_again_is_signed_for_the_same_survivors_only(tmp_path: Path):
    first, again = terms(0), terms(1)
    there = parts(tmp_path)
    masked(there, first)
    survivors = write_set(SILOS, first)
    there[SILOS[0]].answer(asked("agree", first, survivors=survivors))
    there = parts(tmp_path)  # the node was started again
    masked(there, again)
    fewer = write_set(SILOS[:3], again)  # enough, by its terms
    with pytest.raises(AbortError, match="other survivors of round 1 before"):
        there[SILOS[0]].answer(asked("agree", again, survivors=fewer))
    there = parts(tmp_path)
    masked(there, again)
    assert there[SILOS[0]].answer(asked("agree", again, survivors=survivors))


def test_a_vector_is_sent_at_one_choice_of_bounds_a_round(tmp_path: Path):
    """Also by who didn't sign: the sum may have been opened by others."""
    masked(parts(tmp_path), terms(0))
    again = terms(1, halvings=(3,))
    with pytest.raises(AbortError, match="other bounds in round 1 before"):
        masked(parts(tmp_path), again)  # the nodes were started again
    masked(parts(tmp_path), terms(1, halvings=(3,), round_number=2))


def test_a_vector_is_sent_again_only_where_quorums_share_an_honest_silo(tmp_path: Path):
    """Else some could sign for one sum and others for another, and their difference be of few."""
    first = dataclasses.replace(terms(0, silos=SILOS[:3]), quorum=2)
    there = {silo: part for silo, part in parts(tmp_path).items() if silo in first.silos}
    for part in there.values():
        part.min_silos = 2
    masked(there, first)
    again = dataclasses.replace(terms(1), quorum=3)  # 2 and 3 of 4 share one
    for colluders, said in ((0, None), (1, "let the same silos take part")):
        part = parts(tmp_path)[SILOS[0]]
        part.min_silos, part.colluders = 2, colluders
        proposed = asked("advertise", again, terms=write_terms(again))
        if said is None:
            part.answer(proposed)
        else:
            with pytest.raises(AbortError, match=said):
                part.answer(proposed)


def test_what_could_not_be_written_is_not_taken_for_remembered(tmp_path: Path):
    """The vector isn't sent then; at the next try it is, and by then it must be on disk."""
    blocked = tmp_path / "run"
    blocked.write_text("no folder")
    agreed = Agreed(blocked / "agreed.jsonl")
    with pytest.raises(OSError, match="run"):
        agreed.add_attempt(terms(0))
    with pytest.raises(OSError, match="run"):
        agreed.add(1, SILOS)
    blocked.unlink()
    agreed.add_attempt(terms(0))
    agreed.add(1, SILOS)
    again = Agreed(blocked / "agreed.jsonl")
    with pytest.raises(AbortError, match="other bounds"):
        again.check_attempt(terms(1, halvings=(3,)), 0)
    with pytest.raises(AbortError, match="other survivors"):
        again.check(1, SILOS[:3])


def test_what_was_agreed_to_is_whole_after_a_loss_of_power(tmp_path: Path):
    masked(parts(tmp_path), terms(0))
    file = tmp_path / f"{SILOS[0]}.jsonl"
    kept = file.read_text()
    file.write_text(kept + kept[:20])
    again = terms(1, halvings=(3,))
    with pytest.raises(AbortError, match="other bounds"):
        masked(parts(tmp_path), again)
    assert file.read_text() == kept
    file.write_text("{}\n" + kept)
    with pytest.raises(InputError, match="agreed to in secure rounds can't be read"):
        parts(tmp_path)


def test_bounds_of_another_number_of_tensors_are_refused_before_anything_is_trained():
    of = terms(halvings=(0, 0))
    part = parts()[SILOS[0]]
    part.answer(asked("advertise", of, terms=write_terms(of)))
    with pytest.raises(AbortError, match="bounds of 2 tensors"):
        part.check_due(asked("", of), 1, DELTA.spec)
    of = terms(words=9)
    part.answer(asked("advertise", of, terms=write_terms(of)))
    with pytest.raises(AbortError, match="9 words are not a vector"):
        part.check_due(asked("", of), 1, DELTA.spec)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"run": "b" * 64}, "of another run"),
        ({"round_number": 4}, "of another run"),
        ({"silos": names(5)}, "not in the roster"),
        ({"silos": SILOS[1:]}, "distinct names with ours"),
    ],
)
def test_terms_of_another_run_or_roster_are_refused(changes: dict, said: str):
    of = terms(**changes)
    with pytest.raises(AbortError, match=said):
        parts()[SILOS[0]].answer(asked("advertise", of, terms=write_terms(of)))


@pytest.mark.parametrize(
    ("step", "content"),
    [
        ("advertise", {"terms": "{"}),
        ("advertise", {"terms": 7}),
        ("advertise", {}),
        ("share", {"adverts": "text"}),
        ("share", {"adverts": [1]}),
        ("agree", {"survivors": b"bytes"}),
        ("unmask", {}),
        ("erase", {}),
    ],
)
def test_what_is_no_message_ends_the_part_and_nothing_else(step: str, content: dict):
    of, part = terms(), parts()[SILOS[0]]
    part.answer(asked("advertise", of, terms=write_terms(of)))
    with pytest.raises(AbortError):
        part.answer(asked(step, of, **content))


def test_nothing_is_trained_for_a_round_that_is_not_at_work():
    of, part = terms(), parts()[SILOS[0]]
    with pytest.raises(AbortError, match="no secure round"):
        part.check_due(asked("", of), 1, DELTA.spec)
    part.answer(asked("advertise", of, terms=write_terms(of)))
    with pytest.raises(AbortError, match="round 1"):
        part.check_due(asked("", of), 2, DELTA.spec)
    with pytest.raises(AbortError, match="another round"):
        part.check_due(asked("", terms(1)), 1, DELTA.spec)


def test_a_run_without_secure_aggregation_has_no_part():
    of = terms()
    part = parts()[SILOS[0]]
    part.config = RunConfig()
    with pytest.raises(AbortError, match="not one with secure aggregation"):
        part.answer(asked("advertise", of, terms=write_terms(of)))


NOISED = RunConfig.model_validate(
    {
        "secure_aggregation": True,
        "federation": {"rounds": 3, "min_silos": 4},
        "privacy": {"mode": "distributed", "unit": "silo", "noise_multiplier": 1.0},
    }
)


def drawn(
    folder: Path, *, silos: int = 4, number: int = 1, colluders: int = 0, at_stake: float = 0.001
) -> np.ndarray:
    """What a silo would send in a round, from a process of its own, whatever it then trained."""
    part = SecurePart(
        *(SILOS[0], NOISED, RUN, identity_of(SILOS[0]), identities(SILOS), 3, colluders),
        drawn=Drawn(folder / "drawn"),
    )
    update = LocalUpdate(DELTA.map(lambda tensor: torch.full_like(tensor, at_stake)), 5)
    about = terms(round_number=number, silos=names(silos), halvings=())
    return part._vector(update, DELTA.spec, about)


def test_noise_is_drawn_once_a_round_whatever_is_asked(tmp_path: Path):
    first = drawn(tmp_path)
    assert np.array_equal(drawn(tmp_path), first)
    assert np.array_equal(drawn(tmp_path, at_stake=0.3), first)
    assert not np.array_equal(drawn(tmp_path / "other"), first)
    second = drawn(tmp_path, number=2)
    assert not np.array_equal(second, first)
    with pytest.raises(AbortError, match="drew our noise for round 2"):
        drawn(tmp_path, number=1)


@pytest.mark.parametrize("changed", [{"silos": 9}, {"colluders": 2}])
def test_noise_of_other_sums_is_not_drawn_anew(tmp_path: Path, changed: dict):
    drawn(tmp_path)
    with pytest.raises(AbortError, match="for other sums"):
        drawn(tmp_path, **changed)


@pytest.mark.parametrize("lost", ["drawn", "drawn/drawn.json"])
def test_noise_whose_vector_is_gone_is_not_drawn_anew(tmp_path: Path, lost: str):
    """As after a crash between two renames, or when old runs are forgotten."""
    drawn(tmp_path)
    drawn(tmp_path, number=2)
    gone = tmp_path / lost
    gone.rename(tmp_path / "away")
    with pytest.raises(AbortError, match=r"is gone|can't be read"):
        drawn(tmp_path, number=2)
    if lost == "drawn":
        assert drawn(tmp_path, number=3).shape


def test_a_silo_more_or_less_has_the_same_vector(tmp_path: Path):
    assert np.array_equal(drawn(tmp_path, silos=5), drawn(tmp_path, silos=4))


def test_noise_that_can_not_be_read_is_not_drawn_anew(tmp_path: Path):
    drawn(tmp_path)
    (tmp_path / "drawn" / "words.npy").write_bytes(b"no")
    with pytest.raises(AbortError, match="can't be read"):
        drawn(tmp_path)


def test_a_smaller_sum_than_noise_is_drawn_for_is_refused():
    part = SecurePart(SILOS[0], NOISED, RUN, identity_of(SILOS[0]), identities(SILOS), 3, 0)
    of = terms(min_silos=3, dropouts=1)
    assert of.quorum == 3
    with pytest.raises(AbortError, match="want 4 at least"):
        part.answer(asked("advertise", of, terms=write_terms(of)))


def test_a_silo_cuts_what_it_sends_to_the_norm_before_it_is_noised():
    privacy = {**NOISED.privacy.model_dump(exclude_unset=True), "noise_multiplier": 0.1}
    config = NOISED.model_copy(update={"privacy": PrivacyConfig.model_validate(privacy)})
    part = SecurePart(SILOS[0], config, RUN, identity_of(SILOS[0]), identities(SILOS), 4, 0)
    loud = LocalUpdate(DELTA.map(lambda tensor: torch.full_like(tensor, 1000.0)), 5)
    words = part._vector(loud, DELTA.spec, terms(halvings=()))
    sent = noisy_sum(config, DELTA.spec, 4, RUN, 1).decode(words)
    # a norm of 1, and a half of the noise (of four silos) on each of six numbers
    assert sent.norm() == pytest.approx(1.0, abs=0.5)
