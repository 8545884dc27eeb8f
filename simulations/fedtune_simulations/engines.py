"""Where a simulation's silos run: one after another in this process, or as Ray's workers."""

import hashlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path

from fedtune_client.app import make_client_app
from fedtune_client.encoders import Encoder
from fedtune_client.secure import SecurePart
from fedtune_client.silo import silo_encoder
from fedtune_server.reports import RoundReport
from flwr.app import Context
from flwr.serverapp import Grid

from fedtune.aggregation.rule import GlobalState
from fedtune.config.schema import RunConfig
from fedtune.errors import InputError
from fedtune_simulations.events import Listener
from fedtune_simulations.grid import InProcessGrid
from fedtune_simulations.setting import Setting, SimulatedSilo

Outcome = tuple[GlobalState, list[RoundReport]]
Coordinate = Callable[[Grid, Mapping[str, int], float], Outcome]
"""The coordinator: given a grid, the node of each silo, and how often to ask (seconds)."""
Engine = Callable[[Setting, Path, Listener | None, Coordinate], Outcome]
"""Given also the folder for what silos keep between rounds."""


def engine_of(config: RunConfig) -> Engine:
    """The engine that `federation.engine` names."""
    if config.federation.engine == "ray":
        from fedtune_simulations.ray_engine import on_ray

        return on_ray
    return in_process


def check_engine(config: RunConfig) -> None:
    """Raise InputError when the engine's package isn't installed."""
    if config.federation.engine == "ray" and importlib.util.find_spec("ray") is None:
        raise InputError(
            "`ray` is not installed",
            where="federation.engine",
            mend="pip install 'fedtune[ray]', or set it to `inprocess`",
        )


def in_process(
    setting: Setting, kept: Path, on_work: Listener | None, coordinate: Coordinate
) -> Outcome:
    """One silo after another, each with the memory of one."""
    parts = setting.secure_parts()

    def part_of(context: Context) -> SecurePart:
        return parts[str(context.node_config["silo"])]

    app = make_client_app(
        lambda context: SimulatedSilo(str(context.node_config["silo"]), setting, on_work),
        encoder_of=lambda context: simulated_encoder(
            setting.config, str(context.node_config["silo"]), kept
        ),
        secure_of=part_of if parts else None,
    )
    timeout = setting.config.federation.round_timeout_seconds
    grid = InProcessGrid(app, setting.silos, timeout)
    return coordinate(grid, grid.nodes, 0.0)


def simulated_encoder(config: RunConfig, silo: str, kept: Path) -> Encoder:
    """The silo's encoder, with a folder of its own below `kept`: a name may be no file's."""
    return silo_encoder(config, silo, kept / hashlib.sha256(silo.encode()).hexdigest()[:16])
