"""Runs whose deltas travel in fewer bytes, through `simulate`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fedtune_client.app import Instruction, make_client_app
from fedtune_client.encoders import encoder_of
from fedtune_client.silo import silo_encoder
from fedtune_client.update import LocalUpdate
from fedtune_server.reports import RoundReport
from fedtune_server.rounds import RunPlan, run_rounds
from fedtune_simulations.dry_run import dry_run
from fedtune_simulations.events import Working
from fedtune_simulations.grid import InProcessGrid
from fedtune_simulations.setting import SimulatedSilo, prepare
from fedtune_simulations.simulate import simulate
from flwr.app import Array
from safetensors.torch import load_file

from fedtune.cli.main import main
from fedtune.config.load import load_config
from fedtune.config.schema import RunConfig
from fedtune.delta_encoding import decode
from fedtune.models.adapters import read_state
from fedtune.privacy.central import build_central
from fedtune.privacy.noise import SeededNoise
from fedtune.tensors import Spec, TensorSet

SMALL: dict[str, Any] = {
    "data": {"embedded_patients": 16},
    "task": {"max_length": 96},
    "training": {"max_steps": 1, "batch_size": 2},
    "federation": {"rounds": 3, "partition": {"by": "iid", "silos": 3}},
}


def settings(encoding: str, **sections: Any) -> RunConfig:
    federation = {**SMALL["federation"], "delta_encoding": encoding}
    return RunConfig.model_validate({**SMALL, "federation": federation, **sections})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("encoding", "share"), [("float32", 1), ("bfloat16", 1 / 2), ("int8", 0.254)]
)
def test_the_bytes_that_are_told_are_those_that_travel(encoding: str, share: float, tmp_path: Path):
    config = settings(encoding)
    plan = dry_run(config, tmp_path / "run")
    rounds = simulate(config, tmp_path / "run", compare=False).rounds
    assert rounds[0].bytes_up == pytest.approx(share * (rounds[0].bytes_down or 0), rel=0.02)
    assert plan.bytes_up_a_round == rounds[0].bytes_up
    assert plan.bytes_down_a_round == rounds[0].bytes_down
    assert plan.bytes_all_rounds == sum((r.bytes_up or 0) + (r.bytes_down or 0) for r in rounds)


def stop_at(round_number: int, silo: str) -> Callable[[Working], None]:
    def stop(work: Working) -> None:
        if (work.round, work.who) == (round_number, silo):
            raise KeyboardInterrupt

    return stop


def test_killed_within_a_round_and_resumed_is_the_uninterrupted_run(tmp_path: Path):
    config = settings("int8")
    simulate(config, tmp_path / "whole", compare=False)
    # the other two have done round 2 and kept what was left of it
    stop = stop_at(2, "silo-2")
    with pytest.raises(KeyboardInterrupt):
        simulate(config, tmp_path / "cut", compare=False, on_work=stop)
    assert len(list((tmp_path / "cut" / "silos").glob("*/round-000002"))) == 2
    simulate(config, tmp_path / "cut", compare=False, resume=True)
    assert same(tmp_path / "whole", tmp_path / "cut")
    simulate(settings("float32"), tmp_path / "float32", compare=False)
    assert not same(tmp_path / "whole", tmp_path / "float32")


def test_a_finished_run_keeps_nothing_of_its_silos(tmp_path: Path):
    kept: list[int] = []

    def look(report: RoundReport) -> None:
        kept.append(len(list((tmp_path / "run" / "silos").glob("*/*"))))

    simulate(settings("int8"), tmp_path / "run", compare=False, on_round=look)
    assert kept == [3, 6, 6]
    assert not (tmp_path / "run" / "silos").exists()


def test_what_is_left_is_of_the_noised_delta(tmp_path: Path):
    """Noise is drawn afresh: only what training gave out, noise and all, can add up exactly."""
    config = settings(
        "int8",
        training={"max_steps": 1},
        privacy={"mode": "local", "noise_multiplier": 1.0, "delta": 1e-3, "sampling": "full"},
    )
    setting = prepare(config)
    name = min(setting.silos)
    told = Instruction(read_state(setting.model), 1)
    first, noised = (SimulatedSilo(name, setting).train(told).delta for _ in range(2))
    assert (noised - first).norm() > 0.1 * first.norm()
    layout, array = silo_encoder(config, name, tmp_path)(noised, 1)
    (file,) = tmp_path.glob("round-000001/*")
    sent = decode(layout, Array(*array), noised.spec, "int8")
    assert (sent + TensorSet.load(file) - noised).norm() < 1e-6 * noised.norm()


class NoNoise(SeededNoise):
    """No noise: what is left is the sum."""

    def normal(self, count: int, std: float) -> np.ndarray:
        return np.zeros(count)


class AtTheBound:
    """A silo that clips by itself, and whose one large value makes the others' steps coarse."""

    spec: Spec = (("w", (400,)),)
    run_hash = "run"

    def train(self, told: Instruction) -> LocalUpdate:
        values = 0.02 * torch.randn(400, generator=torch.Generator().manual_seed(0))
        values[0] = 1.0
        return LocalUpdate(TensorSet({"w": values / values.norm()}), 10)


def test_the_coordinator_clips_what_it_has_decoded(tmp_path: Path):
    """Rounding took the delta over the norm; alone in the sum, it moves the adapter by the norm."""
    encode = encoder_of("int8", tmp_path, np.random.default_rng)
    config = RunConfig.model_validate(
        {
            "privacy": {"mode": "central", "noise_multiplier": 1.0, "clipping_norm": 1.0},
            "federation": {"rounds": 1, "min_silos": 1, "delta_encoding": "int8"},
        }
    )
    app = make_client_app(lambda context: AtTheBound(), encoder_of=lambda context: encode)
    grid = InProcessGrid(app, ["a"])
    plan = RunPlan(grid.nodes, config.federation, seed=0, run_hash="run", poll_seconds=0.0)
    start = TensorSet({"w": torch.zeros(400)})
    state, _ = run_rounds(grid, build_central(config, 1, source=NoNoise(0)), start, plan)
    delta = AtTheBound().train(Instruction(start, 1)).delta
    layout, array = encode(delta, 1)
    assert decode(layout, Array(*array), delta.spec, "int8").norm() > 1.001
    # 1e-4: the noised sum lies on a grid
    assert 0.99 < state.adapter.norm() <= 1.0 + 1e-4


def test_int8_is_refused_on_rays_workers(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("ray", reason="the extra `fedtune[ray]` is not installed")
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps({**SMALL, "output": {"dir": str(tmp_path / "run")}}))
    given = ["federation.engine=ray", "federation.delta_encoding=int8"]
    for more in ([], ["--dry-run"]):
        assert main(["simulate", str(file), *given, *more]) == 2
        said = capsys.readouterr().err
        assert said.startswith("fedtune: federation.engine: ")
        assert "delta_encoding: int8" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_demo_learns_as_much_from_fewer_bytes(tmp_path: Path):
    scenario = load_config(Path(__file__).parents[2] / "simulations" / "scenarios" / "demo.yaml")
    told = {}
    for encoding in ("float32", "bfloat16", "int8"):
        federation = scenario.federation.model_copy(update={"delta_encoding": encoding})
        config = scenario.model_copy(update={"federation": federation})
        rounds = simulate(config, tmp_path / encoding, compare=False).rounds
        told[encoding] = rounds[-1].loss, rounds[-1].metric, sum(r.bytes_up or 0 for r in rounds)
        print(encoding, *told[encoding], flush=True)
    for encoding in ("bfloat16", "int8"):
        loss, accuracy, _ = told[encoding]
        assert loss == pytest.approx(told["float32"][0], rel=0.005)
        assert accuracy == pytest.approx(told["float32"][1], rel=0.005)
