"""A hospital's node, spoken to as the coordinator does: real messages, data, model and ledger."""

import datetime
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedtune_client.app import reply
from fedtune_client.node import Node, RefusedError, node_app
from fedtune_client.node_config import NodeConfig
from fedtune_client.replies import forget_old_runs
from fedtune_client.update import LocalUpdate
from fedtune_server.messages import instruction, read_update
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.aggregation_rules import merged
from fedtune.config.model import ModelConfig
from fedtune.config.published import deployed_hash
from fedtune.config.schema import RunConfig
from fedtune.delta_encoding import encoded_size
from fedtune.identity.keys import new_identity, public_bytes
from fedtune.identity.proof import is_proven, new_nonce
from fedtune.identity.roster import Member, Roster, sign
from fedtune.models.adapters import read_state
from fedtune.models.base_files import base_digest
from fedtune.models.fed_sb import factors_digest
from fedtune.privacy.ledger import Ledger
from fedtune.training.prepare import prepare

EMBEDDED = base_digest(ModelConfig())
IDENTITY, CONSORTIUM = new_identity(), new_identity()
PINNED = public_bytes(CONSORTIUM)
NORTH = Member(
    silo="north", identity=public_bytes(IDENTITY).hex(), tls_key="0" * 64, flower_key="k"
)
OPEN: dict[str, Any] = {"modes": ["none", "local"], "max_delta": 1e-3}
RUN: dict[str, Any] = {
    "task": {"max_length": 48},
    "training": {"max_steps": 2, "batch_size": 4},
    "federation": {"rounds": 3},
}
PRIVATE: dict[str, Any] = {
    "privacy": {"mode": "local", "target_epsilon": 3.0, "delta": 1e-3, "max_records_per_unit": 2}
}


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FEDTUNE_LEDGER", str(tmp_path / "ledger" / "budget.sqlite"))
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


@pytest.fixture
def node(tmp_path: Path) -> Callable[..., Node]:
    rows = tmp_path / "rows.jsonl"
    lines = [
        {"prompt": f"patient {i % 20}", "completion": f"is well {i}", "who": f"p{i % 20}"}
        for i in range(40)
    ]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def make(**policy: Any) -> Node:
        config = NodeConfig.model_validate(
            {
                "silo": "north",
                "consortium": "a" * 64,
                "data": {
                    "source": "files",
                    "train_files": [str(rows)],
                    "columns": {"privacy_unit": "who"},
                },
                "base_models": [{"path": "embedded", "sha256": EMBEDDED}],
                "policy": {"privacy": OPEN, **policy},
            }
        )
        return Node(config, IDENTITY, tmp_path / "node", PINNED)

    return make


def run_of(changes: dict[str, Any]) -> RunConfig:
    return RunConfig.model_validate(merged(RUN, changes))


def message_of(
    config: RunConfig, number: int = 1, run: str = "first", base: str = EMBEDDED, factors: str = ""
) -> Message:
    state = read_state(prepare(config).model)
    content = instruction(state, number, deployed_hash(config, run))
    said = {"name": run, "settings": config.model_dump_json(), "base_sha256": base}
    content["run"] = ConfigRecord({**said, "factors_sha256": factors} if factors else said)
    return Message(content, dst_node_id=3, message_type="train")


def ask(node: Node, message: Message) -> LocalUpdate:
    return node.train(message)


def charges(node: Node) -> int:
    path = node.folder.parent / "ledger" / "budget.sqlite"
    return len(list(Ledger.open(path).charges())) if path.exists() else 0


def test_a_silo_trains_on_its_own_rows_and_answers_like_any_other(node: Callable[..., Node]):
    config = run_of({})
    message = message_of(config)
    update = ask(node(send_counts=True, send_metrics=True), message)
    assert update.examples == 40
    assert set(update.metrics) == {"loss"}
    spec = read_state(prepare(config).model).spec
    vars(message.metadata).update(_message_id="m1", _src_node_id=1)
    assert read_update(reply(message, update), spec).delta.digest() == update.delta.digest()


def test_a_node_encodes_as_the_run_says_and_sends_the_same_bytes_again(node: Callable[..., Node]):
    config = run_of({"federation": {"delta_encoding": "int8"}})
    spec = read_state(prepare(config).model).spec
    ours = node()
    sent = []
    for number in (1, 2, 2):
        message = message_of(config, number)
        vars(message.metadata).update(_message_id="m1", _src_node_id=1)
        update = read_update(ours.answer(message), spec, "int8")
        sent.append((update.payload_bytes, update.delta.digest()))
    assert {size for size, _ in sent} == {encoded_size(spec, "int8")}
    assert sent[0] != sent[1]
    assert sent[1] == sent[2]


def test_neither_count_nor_loss_leaves_unless_the_silo_says_so(node: Callable[..., Node]):
    update = ask(node(), message_of(run_of({})))
    assert (update.examples, update.metrics) == (1, {})
    private = ask(node(send_metrics=True), message_of(run_of(PRIVATE)))
    assert private.metrics == {}


def test_a_run_that_breaks_the_policy_touches_no_data(
    node: Callable[..., Node], caplog: pytest.LogCaptureFixture
):
    strict = node(max_steps=1, privacy={"modes": ["local"]})
    Path(strict.config.data.train_files[0]).unlink()  # it would be missed if it were looked for
    with pytest.raises(RefusedError) as told:
        ask(strict, message_of(run_of({})))
    for words in ("training.max_steps is 2, this silo allows 1", "privacy.mode is none"):
        assert words in str(told.value)
        assert words in caplog.text
    assert not strict.folder.exists()


def test_a_base_model_of_another_digest_is_refused(node: Callable[..., Node]):
    with pytest.raises(RefusedError, match="base model is not one"):
        ask(node(), message_of(run_of({}), base="0" * 64))
    ours = node()
    lying = ours.config.model_copy(
        update={"base_models": [ours.config.base_models[0].model_copy(update={"sha256": "1" * 64})]}
    )
    with pytest.raises(RefusedError, match="files here are not those of its digest"):
        ask(Node(lying, IDENTITY, ours.folder, PINNED), message_of(run_of({}), base="1" * 64))


def test_factors_that_are_not_the_coordinator_s_are_refused(node: Callable[..., Node]):
    """Else R would be averaged over silos in which it stands for different things."""
    config = run_of({"adapter": {"method": "fed_sb"}})
    ours = factors_digest(prepare(config).model)
    update = ask(node(methods=["fed_sb"]), message_of(config, factors=ours))
    assert {tensor.shape for tensor in update.delta.tensors.values()} == {(8, 8)}
    assert update.delta.norm() > 0
    for theirs in ("", "0" * 64):  # of an older coordinator, and of one that draws others
        with pytest.raises(RefusedError, match="fixed factors here are not the coordinator's"):
            ask(node(methods=["fed_sb"]), message_of(config, factors=theirs))


def test_the_coordinator_s_paths_are_not_looked_at(node: Callable[..., Node], tmp_path: Path):
    theirs = tmp_path / "theirs.jsonl"
    theirs.write_text('{"prompt": "a", "completion": "b"}\n' * 20)
    data = {"source": "files", "train_files": [str(theirs)]}
    message = message_of(run_of({"data": data}))
    theirs.unlink()
    assert ask(node(), message).delta.digest() == ask(node(), message_of(run_of({}))).delta.digest()


def test_asked_again_it_sends_the_same_and_nobody_is_charged_twice(node: Callable[..., Node]):
    config = run_of(PRIVATE)
    first = node()
    update = ask(first, message_of(config))
    assert charges(first) == 1
    again = ask(node(), message_of(config))  # the node was started anew
    assert again.delta.digest() == update.delta.digest()
    assert charges(first) == 1
    ask(node(), message_of(config, number=2))
    assert charges(first) == 1  # the plan has all rounds


def test_a_round_that_was_cut_is_charged_again(
    node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
):
    from fedtune_client.silo import LocalSilo

    def killed(*_: Any) -> LocalUpdate:
        raise KeyboardInterrupt

    config, ours = run_of(PRIVATE), node()
    with monkeypatch.context() as patch:
        patch.setattr(LocalSilo, "train", killed)
        with pytest.raises(KeyboardInterrupt):
            ask(ours, message_of(config))
    assert charges(ours) == 1
    ask(node(), message_of(config))
    assert charges(ours) == 2


def test_a_node_whose_record_was_put_back_pays_for_what_it_does_again(node: Callable[..., Node]):
    config, ours = run_of(PRIVATE), node()
    ask(ours, message_of(config))
    shutil.copytree(ours.folder / "runs", ours.folder / "kept")
    ask(ours, message_of(config, number=2))
    assert charges(ours) == 1
    shutil.rmtree(ours.folder / "runs")
    (ours.folder / "kept").rename(ours.folder / "runs")
    ask(node(), message_of(config, number=2))
    assert charges(ours) == 2
    ask(node(), message_of(config, number=3))
    assert charges(ours) == 2


def test_what_was_paid_for_one_run_pays_for_no_other(node: Callable[..., Node]):
    config, ours = run_of(PRIVATE), node()
    ask(ours, message_of(config))
    (first,) = (ours.folder / "runs").iterdir()
    second = first.with_name(deployed_hash(config, "second"))
    second.mkdir()
    shutil.copy(first / "charged.json", second)
    ask(ours, message_of(config, run="second"))
    rows = Ledger.open(ours.folder.parent / "ledger" / "budget.sqlite").charges(second.name)
    all_rounds = RUN["training"]["max_steps"] * RUN["federation"]["rounds"]
    assert sum(row.body["events"][0]["count"] for row in rows) >= all_rounds


def test_a_run_goes_on_with_none_but_the_people_who_were_charged_for_it(
    node: Callable[..., Node], tmp_path: Path
):
    config, ours, rows = run_of(PRIVATE), node(), tmp_path / "rows.jsonl"
    ask(ours, message_of(config))
    before = rows.read_text()
    rows.write_text(before + before.replace('"who": "p', '"who": "q').replace("well", "ill"))
    with pytest.raises(RefusedError, match="not those that it was charged to"):
        ask(node(), message_of(config, number=2))
    rows.write_text("".join(before.splitlines(keepends=True)[::-1]))
    ask(node(), message_of(config, number=2))
    assert charges(ours) == 1


def test_a_silo_has_the_statement_of_its_part(node: Callable[..., Node]):
    ours, config = node(), run_of(PRIVATE)
    ask(ours, message_of(config))
    (file,) = (ours.folder / "runs").glob("*/privacy.json")
    told = json.loads(file.read_text())
    assert 0 < told["promise"]["epsilon"] <= 3.0
    assert (told["promise"]["unit"], list(told["parties"])) == ("patient", ["north"])
    first = told["parties"]["north"]["ledger"]
    assert first["after"]
    assert (file.parent / "privacy.md").exists()
    ask(ours, message_of(config, number=2))
    assert json.loads(file.read_text())["parties"]["north"]["ledger"] == first


def test_old_runs_leave_only_what_was_charged_and_told(
    node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
):
    from fedtune_client.silo import LocalSilo

    ours = node()
    ours.config = ours.config.model_copy(update={"kept_runs": 1})
    encoded = {"federation": {"delta_encoding": "int8"}}
    private, plain = run_of({**PRIVATE, **encoded}), run_of(encoded)
    answers: dict[str, str] = {}

    def asked(name: str) -> str:
        config = private if name.startswith("private") else plain
        message = message_of(config, run=name)
        vars(message.metadata).update(_message_id="m1", _src_node_id=1)
        spec = read_state(prepare(config).model).spec
        return read_update(ours.answer(message), spec, "int8").delta.digest()

    def kept(name: str) -> set[str]:
        config = private if name.startswith("private") else plain
        return {
            path.name for path in (ours.folder / "runs" / deployed_hash(config, name)).glob("*")
        }

    stays = {"charged.json", "begun.jsonl", "privacy.json", "privacy.md"}
    for name in ("private 1", "plain 1", "plain 2", "plain 3"):
        answers[name] = asked(name)
    assert kept("plain 1") == set()
    assert kept("plain 2") == kept("plain 3") == {"begun.jsonl", "round-000001", "left"}
    assert kept("private 1") == stays | {"round-000001", "left"}
    with monkeypatch.context() as patch:
        patch.delattr(LocalSilo, "train")
        for name in ("private 1", "plain 3"):
            assert asked(name) == answers[name]
    for name in ("private 2", "private 3"):
        asked(name)
    assert charges(ours) == 3
    assert kept("private 1") == stays
    assert kept("private 2") == kept("private 3") == stays | {"round-000001", "left"}
    ask(ours, message_of(private, number=2, run="private 1"))  # paid for
    assert charges(ours) == 3
    ask(ours, message_of(private, run="private 1"))
    assert charges(ours) == 4


def test_a_damaged_reply_is_not_sent(node: Callable[..., Node]):
    config, ours = run_of({}), node()
    update = ask(ours, message_of(config))
    (kept,) = (ours.folder / "runs").rglob("delta.safetensors")
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.write_bytes(content)
    assert ask(node(), message_of(config)).delta.digest() == update.delta.digest()


def test_what_would_break_the_promise_is_refused_before_any_data(node: Callable[..., Node]):
    ours = node()
    Path(ours.config.data.train_files[0]).unlink()
    private = PRIVATE["privacy"]
    for changes, words in (
        ({"adapter": {"use_dora": True}, **PRIVATE}, "can't be told apart by example"),
        ({"privacy": {**private, "sampling": "shuffle"}}, "can't go on with `shuffle`"),
    ):
        with pytest.raises(RefusedError, match=words):
            ask(ours, message_of(run_of(changes)))
    assert charges(ours) == 0


def test_a_spent_budget_is_the_machine_s_and_no_run_s_settings_lead_past_it(
    node: Callable[..., Node], tmp_path: Path
):
    Ledger.open(tmp_path / "ledger" / "budget.sqlite").set_budget(1.0, 1e-3)
    elsewhere = {"privacy": {**PRIVATE["privacy"], "ledger": str(tmp_path / "theirs.sqlite")}}
    with pytest.raises(RefusedError, match="budget does not allow it"):
        ask(node(), message_of(run_of(elsewhere)))
    central = {"mode": "central", "target_epsilon": 3.0, "outside_budget": True}
    allowed = node(privacy={**OPEN, "modes": ["central"]})
    with pytest.raises(RefusedError, match="a budget is set on this machine"):
        ask(allowed, message_of(run_of({"privacy": central})))


def test_a_round_beyond_the_run_is_refused(node: Callable[..., Node]):
    with pytest.raises(RefusedError, match="round 4 of a run of 3"):
        ask(node(), message_of(run_of({}), number=4))


def test_a_run_of_the_same_settings_and_another_name_is_another_run(node: Callable[..., Node]):
    config, ours = run_of(PRIVATE), node()
    ask(ours, message_of(config))
    ask(ours, message_of(config, run="second"))
    assert charges(ours) == 2
    mixed = message_of(config, run="third")
    mixed.content["run"]["name"] = "fourth"
    with pytest.raises(RefusedError, match="other settings"):
        ask(ours, mixed)


def roster(version: int, *members: Member, key: Ed25519PrivateKey = CONSORTIUM) -> str:
    return sign(Roster(federation="Trial", version=version, members=members or (NORTH,)), key)


def query(run: str, nonce: str, listed: str) -> Message:
    asked = ConfigRecord({"run": run, "nonce": nonce, "roster": listed})
    return Message(RecordDict({"challenge": asked}), dst_node_id=3, message_type="query")


def test_the_newest_roster_is_kept_and_no_other_taken(node: Callable[..., Node]):
    ours = node()
    file = ours.folder / "roster.json"
    ours.prove(query("first", new_nonce(), roster(4)))
    ours.prove(query("first", new_nonce(), roster(6)))
    assert file.read_text() == roster(6)
    changed = roster(7).replace('"version', '"Version')
    for listed, words in (
        (roster(5), "version 6 was seen before"),
        (roster(7, key=new_identity()), "signature"),
        (changed, "."),
        ("", "."),
    ):
        with pytest.raises(RefusedError, match=words):
            ours.prove(query("first", new_nonce(), listed))
    assert file.read_text() == roster(6)


def test_who_it_is_is_proven_for_one_run_and_number(node: Callable[..., Node]):
    nonce, member = new_nonce(), NORTH
    told = node().prove(query("first", nonce, roster(1)))["silo"]
    proof = str(told["proof"])
    assert is_proven(member, "first", nonce, proof)
    for changed in (
        (member, "second", nonce, proof),
        (member, "first", new_nonce(), proof),
        (member, "first", nonce, f"{proof[:-2]}{int(proof[-2:], 16) ^ 1:02x}"),
        (member, "first", nonce, "zz"),
        (member.model_copy(update={"silo": "south"}), "first", nonce, proof),
        (
            member.model_copy(update={"identity": public_bytes(new_identity()).hex()}),
            "first",
            nonce,
            proof,
        ),
    ):
        assert not is_proven(*changed)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=8,
)
_SECTIONS = st.sampled_from(sorted(RunConfig.model_fields))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(tree=st.dictionaries(_SECTIONS, _VALUES, max_size=4))
def test_absurd_settings_are_refused_in_words(node: Callable[..., Node], tree: dict[str, Any]):
    content = RecordDict(
        {"run": ConfigRecord({"name": "x", "settings": json.dumps(tree), "base_sha256": "0" * 64})}
    )
    message = Message(content, dst_node_id=3, message_type="train")
    with pytest.raises(RefusedError) as told:  # the base is never one of ours
        node().train(message)
    assert str(told.value)


def test_the_app_answers_both_kinds_of_message(node: Callable[..., Node]):
    app = node_app(node())
    message = message_of(run_of({}))
    vars(message.metadata).update(_message_id="m1", _src_node_id=1, _run_id=1)
    context = Context(run_id=1, node_id=3, node_config={}, state=RecordDict(), run_config={})
    assert set(app(message, context).content) == {"delta", "layout", "numbers"}


def test_outside_its_hours_a_silo_does_not_train(node: Callable[..., Node]):
    ours = node(hours={"begin": "20:00", "until": "06:00"})
    ours.now = lambda: datetime.datetime(2026, 1, 5, 12, 0)
    with pytest.raises(RefusedError, match="it is 12:00 here"):
        ask(ours, message_of(run_of({})))
    ours.now = lambda: datetime.datetime(2026, 1, 5, 23, 0)
    assert ask(ours, message_of(run_of({})))


def test_a_private_node_spends_nothing_outside_a_secure_round(node: Callable[..., Node]):
    ours = node()
    config = run_of({**PRIVATE, "secure_aggregation": {"enabled": True}})
    with pytest.raises(RefusedError, match="no secure round is at work"):
        ask(ours, message_of(config))
    assert charges(ours) == 0
    assert not list((ours.folder / "runs").glob("*/begun.jsonl"))


def test_what_was_signed_for_in_a_secure_sum_stays_when_the_run_is_forgotten(tmp_path: Path):
    for number, name in enumerate(("signed", "plain", "new")):
        (tmp_path / name / "round-000001").mkdir(parents=True)
        (tmp_path / name / "begun.jsonl").write_text("{}")
        os.utime(tmp_path / name / "begun.jsonl", (number, number))
    for name in ("signed", "new"):
        (tmp_path / name / "agreed.jsonl").write_text("{}")
    forget_old_runs(tmp_path, 1, "at work")
    assert {path.name for path in (tmp_path / "signed").iterdir()} == {
        "agreed.jsonl",
        "begun.jsonl",
    }
    assert (tmp_path / "new" / "round-000001").is_dir()
