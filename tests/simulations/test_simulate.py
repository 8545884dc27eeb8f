"""`fedtune simulate` through the command line, on the embedded model and notes."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from fedtune_client.app import Instruction
from fedtune_client.silo import silo_seed
from fedtune_server.reports import RoundReport
from fedtune_simulations.dry_run import dry_run
from fedtune_simulations.events import Working
from fedtune_simulations.setting import SimulatedSilo, prepare
from fedtune_simulations.simulate import simulate
from mlflow.tracking import MlflowClient
from peft import PeftModel
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import fedtune
from fedtune.cli.main import main
from fedtune.config.schema import RunConfig
from fedtune.models.adapters import read_state, write_state
from fedtune.models.base import load_base
from fedtune.models.residual import folded
from fedtune.tasks.evaluation import evaluate
from fedtune.tensors import TensorSet
from fedtune.training.trainer import Trainer

SMALL = {
    "data": {"embedded_patients": 32},
    "task": {"max_length": 160},
    "training": {"max_steps": 2, "batch_size": 4},
    "federation": {"rounds": 3},
}

WHOLE_BATCH = {
    "optimizer": "sgd",
    "learning_rate": 0.5,
    "batch_size": 1000,
    "micro_batch_size": 16,
    "max_grad_norm": None,
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDTUNE_CACHE", str(tmp_path / "cache"))


def run(folder: Path, *arguments: str) -> int:
    file = folder.with_suffix(".yaml")
    file.write_text(json.dumps({**SMALL, "output": {"dir": str(folder)}}))
    return main(["simulate", str(file), *arguments])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_is_repeatable_resumable_and_loads_with_plain_peft(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(tmp_path / "a", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["comparison"]) == {
        "base",
        "best silo alone",
        "mean silo alone",
        "federated",
        "central",
    }
    assert told["comparison"]["federated"]["loss"] < told["comparison"]["base"]["loss"]
    assert run(tmp_path / "b", "--no-compare") == 0
    assert same(tmp_path / "a", tmp_path / "b")
    model = PeftModel.from_pretrained(
        load_base(RunConfig().model, "causal_lm").model, tmp_path / "a/adapter"
    )
    assert any(p.abs().max() > 0 for n, p in model.named_parameters() if "lora_B" in n)
    texts = [p for p in (tmp_path / "a/adapter").iterdir() if p.suffix in (".json", ".md")]
    assert len(texts) >= 3
    installed = str(Path(fedtune.__file__).parent)
    assert not [path.name for path in texts if installed in path.read_text()]
    assert len((tmp_path / "a/metrics.jsonl").read_text().splitlines()) == 3
    assert run(tmp_path / "a", "--no-compare") == 2
    assert "--resume" in capsys.readouterr().err


def test_interrupted_and_resumed_is_the_uninterrupted_run(tmp_path: Path):
    settings = RunConfig.model_validate(SMALL)

    def stop(report: object) -> None:
        raise KeyboardInterrupt

    simulate(settings, tmp_path / "whole", compare=False)
    with pytest.raises(KeyboardInterrupt):
        simulate(settings, tmp_path / "cut", compare=False, on_round=stop)
    simulate(settings, tmp_path / "cut", compare=False, resume=True)
    assert same(tmp_path / "whole", tmp_path / "cut")
    whole, cut = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "cut"))
    assert [json.loads(r)["loss"] for r in whole.splitlines()] == [
        json.loads(r)["loss"] for r in cut.splitlines()
    ]


def test_one_sgd_step_of_all_silos_is_one_central_step_on_the_pooled_batch(tmp_path: Path):
    settings = RunConfig.model_validate(
        {
            **SMALL,
            "training": {**WHOLE_BATCH, "max_steps": 1},
            "federation": {"rounds": 1},
        }
    )
    simulate(settings, tmp_path / "run", compare=False)
    setting = prepare(settings)
    pooled = [example for data in setting.silos.values() for example in data]
    Trainer(setting.task, settings.training, seed=0).fit(setting.model, pooled)
    central = read_state(setting.model)
    federated = weights(tmp_path / "run")
    assert max(float(t.abs().max()) for n, t in central.tensors.items() if "lora_B" in n) > 1e-3
    for name, tensor in central.tensors.items():
        assert torch.allclose(federated[name.replace(".default", "")], tensor, atol=1e-6), name


def trained(steps: int, mu: float) -> TensorSet:
    settings = RunConfig.model_validate(
        {
            **SMALL,
            "training": {**WHOLE_BATCH, "max_steps": steps},
            "federation": {"proximal_mu": mu},
        }
    )
    setting = prepare(settings)
    told = Instruction(read_state(setting.model), 1)
    return SimulatedSilo(min(setting.silos), setting).train(told).delta


def test_fedprox_pulls_each_step_towards_what_the_silo_received():
    # w1 = w0 - rate g(w0); w2 = w1 - rate (g(w1) + mu (w1 - w0))
    pull = trained(2, mu=0.3) - trained(2, mu=0.0)
    wanted = trained(1, mu=0.3) * (-0.5 * 0.3)
    assert wanted.norm() > 1e-3
    assert (pull - wanted).norm() < 1e-3 * wanted.norm()


def test_a_silo_trains_with_the_residual_in_place():
    settings = RunConfig.model_validate(
        {
            **SMALL,
            "training": {**WHOLE_BATCH, "max_steps": 1},
            "federation": {"aggregation": "fedex"},
        }
    )
    setting = prepare(settings)
    adapter = read_state(setting.model)
    torch.manual_seed(0)
    residual = adapter.map(lambda tensor: 0.1 * torch.randn_like(tensor))
    name = min(setting.silos)
    losses = [
        SimulatedSilo(name, setting).train(Instruction(adapter, 1, added)).metrics["loss"]
        for added in (residual, TensorSet({}))
    ]
    write_state(setting.model, adapter)
    # the loss of the one step is that of the weights it began with
    whole = evaluate(setting.task, folded(setting.model, residual), setting.silos[name], 16)
    assert losses[0] == pytest.approx(whole["loss"], abs=1e-4)
    assert abs(losses[0] - losses[1]) > 1e-2


def test_each_silo_and_round_draws_its_own_order():
    seeds = {silo_seed(s, name, number) for s in (0, 1) for name in "ab" for number in (1, 2)}
    assert len(seeds) == 8


def test_what_it_is_compared_with_takes_as_many_steps(tmp_path: Path):
    federation = {"rounds": 2, "partition": {"by": "quantity", "silos": 2}}
    training = {"num_epochs": 1.0, "batch_size": 16}
    settings = RunConfig.model_validate(
        {
            "data": {"embedded_patients": 16},
            "task": {"max_length": 96},
            "training": training,
            "federation": federation,
        }
    )
    heard: list[Working] = []
    result = simulate(settings, tmp_path / "run", on_work=heard.append)
    taken = {work.who: work.steps for work in heard if work.round is None}
    own = {name: 2 * math.ceil(rows / 16) for name, rows in result.silos.items()}
    assert taken == {f"{name} alone": n for name, n in own.items()} | {"central": sum(own.values())}
    best, mean = (result.comparison[f"{which} silo alone"]["loss"] for which in ("best", "mean"))
    assert best < mean


@pytest.mark.parametrize(
    ("setting", "field"),
    [
        ("federation.min_silos=9", "federation.min_silos"),
        ("federation.silo_ranks={x: 2}; federation.aggregation=svd", "federation.silo_ranks.x"),
        ("adapter.init_from=/nothing/here", "adapter.init_from"),
        ("training.save_steps=5", "training.save_steps"),
        ("model.path=/nothing/here", "model.path"),
    ],
)
def test_what_can_not_be_done_is_refused_before_anything_is_written(
    setting: str, field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(tmp_path / "run", *setting.split("; ")) == 2
    assert capsys.readouterr().err.startswith(f"fedtune: {field}")
    assert not (tmp_path / "run").exists()


def test_resuming_over_other_data_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [{"text": f"word {i} of silo {i % 2}", "silo": "ab"[i % 2]} for i in range(24)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = (
        f"data={{source: files, train_files: [{data}]}}",
        "federation.partition.column=silo",
        "federation.rounds=1",
        "--no-compare",
    )
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(json.dumps({"text": "word of silo 0", "silo": "a"}) + "\n")
    apart = (*given, f"data.test_files=[{held_out}]")
    folder = tmp_path / "run"
    for settings, edited in ((given, data), (apart, held_out)):
        shutil.rmtree(folder, ignore_errors=True)
        before = edited.read_text()
        assert run(folder, *settings) == 0
        edited.write_text(before.replace("word", "worse", 1))
        for partition_kept in (True, False):
            if not partition_kept:
                (folder / "partition.json").unlink()
            files = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
            for more in ([], ["--dry-run"]):
                capsys.readouterr()
                assert run(folder, *settings, "--resume", *more) == 2
                said = capsys.readouterr().err
                assert "other data" in said
                assert "put the file back as it was, or set another `output.dir`" in said
                assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == files
        edited.write_text(before)
        assert run(folder, *settings, "--resume") == 0
        assert (folder / "partition.json").exists()


def test_a_finished_run_that_is_resumed_is_not_compared_again(tmp_path: Path):
    settings = RunConfig.model_validate({**SMALL, "federation": {"rounds": 1}})
    whole = simulate(settings, tmp_path / "run")
    heard: list[Working] = []
    again = simulate(settings, tmp_path / "run", resume=True, on_work=heard.append)
    assert again.comparison == whole.comparison
    assert not heard
    (tmp_path / "run" / "comparison.json").write_text("{")
    assert simulate(settings, tmp_path / "run", resume=True).comparison == whole.comparison


def test_resuming_with_other_silos_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    given = ("federation.rounds=1", "--no-compare")
    assert run(tmp_path / "run", *given) == 0
    saved = tmp_path / "run" / "partition.json"
    divided = json.loads(saved.read_text())
    first, second, *_ = divided["silos"].values()
    first.append(second.pop())  # another numpy's draws, or a hand that moved a row
    saved.write_text(json.dumps(divided))
    for more in ([], ["--dry-run"]):
        assert run(tmp_path / "run", *given, "--resume", *more) == 2
        assert "partition.json: these are not the silos" in capsys.readouterr().err


def test_fedex_the_saved_adapter_is_what_the_run_scored_and_resume_is_bit_equal(tmp_path: Path):
    given = {**SMALL, "federation": {"rounds": 3, "aggregation": "fedex"}}
    settings = RunConfig.model_validate(given)

    def stop(report: RoundReport) -> None:
        if report.round == 2:
            raise KeyboardInterrupt

    whole = simulate(settings, tmp_path / "whole", compare=False)
    with pytest.raises(KeyboardInterrupt):
        simulate(settings, tmp_path / "cut", compare=False, on_round=stop)
    simulate(settings, tmp_path / "cut", compare=False, resume=True)
    assert same(tmp_path / "whole", tmp_path / "cut")
    loaded = PeftModel.from_pretrained(
        load_base(RunConfig().model, "causal_lm").model, tmp_path / "whole/adapter"
    )
    setting = prepare(settings)
    scores = evaluate(setting.task, loaded, setting.test, 32)
    assert scores["loss"] == pytest.approx(whole.rounds[-1].loss, abs=1e-5)
    assert whole.rounds[1].bytes_down > 2 * whole.rounds[0].bytes_down  # the residual travels
    assert whole.rounds[1].bytes_up == whole.rounds[0].bytes_up


def test_svd_silos_train_the_rank_that_was_asked_over_one_base(tmp_path: Path):
    given = {
        **SMALL,
        "federation": {
            "rounds": 2,
            "aggregation": "svd",
            "partition": {"by": "iid", "silos": 3},
            "silo_ranks": {"silo-1": 2, "silo-2": 8},
        },
    }
    settings = RunConfig.model_validate(given)
    setting = prepare(settings)
    ranks = {}
    for name in setting.silos:
        spec = SimulatedSilo(name, setting).spec
        ranks[name] = {shape[0] for tensor, shape in spec if "lora_A" in tensor}
    assert ranks == {"silo-0": {8}, "silo-1": {2}, "silo-2": {8}}
    frozen = [
        {p.data_ptr() for p in model.parameters() if not p.requires_grad}
        for model in (setting.model, setting.model_of("silo-1"))
    ]
    assert frozen[0] == frozen[1]
    assert setting.model_of("silo-2") is setting.model
    result = simulate(settings, tmp_path / "run", compare=False)
    sent = result.rounds[0].bytes_up
    assert sent == pytest.approx(read_state(setting.model).payload_bytes * (2 + 2 / 8), rel=0.01)
    # the adapter's effect is the truncation of the exact mean of what silos trained
    assert {t.shape[0] for n, t in weights(tmp_path / "run").items() if "lora_A" in n} == {8}


def test_a_dry_run_bounds_what_fedex_sends(tmp_path: Path):
    given = {
        **SMALL,
        "adapter": {"lora_r": 2},
        "federation": {
            "rounds": 3,
            "aggregation": "fedex",
            "partition": {"by": "iid", "silos": 3},
        },
    }
    settings = RunConfig.model_validate(given)
    plan = dry_run(settings, tmp_path / "run")
    rounds = simulate(settings, tmp_path / "run", compare=False).rounds
    assert rounds[0].bytes_down == plan.bytes_down_a_round
    assert sum(r.bytes_up + r.bytes_down for r in rounds) == plan.bytes_all_rounds


def test_rounds_go_to_the_loggers_that_are_asked_for(tmp_path: Path):
    assert run(tmp_path / "run", "--no-compare", "output.loggers=[tensorboard, mlflow]") == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    told = [json.loads(line)["loss"] for line in lines]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(told, rel=1e-6)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}")
    (kept,) = client.search_runs([client.get_experiment_by_name("fedtune").experiment_id])
    history = client.get_metric_history(kept.info.run_id, "loss")
    assert [metric.value for metric in history] == told
