"""Where a run's numbers go: always metrics.jsonl, and what `output.loggers` asks for."""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from fedtune.atomic import append_line, write_text
from fedtune.config.schema import RunConfig
from fedtune.errors import InputError

_NEEDS = {"tensorboard": "tensorboard", "mlflow": "mlflow"}


class Logger(Protocol):
    """Takes numbers by step (or round)."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers after `step`."""

    def close(self) -> None:
        """Flush and let go."""


class JsonlLogger:
    """One JSON object a line, `step` first. What a killed run wrote beyond `step` is dropped."""

    def __init__(self, path: Path, *, keep_until: int = 0) -> None:
        self._path = path
        kept = [line for line in metric_lines(path) if line["step"] <= keep_until]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line; it is on disk's way at once."""
        append_line(self._path, json.dumps({"step": step, **values}))

    def close(self) -> None:
        """Nothing is open between two lines."""


class TensorBoardLogger:
    """Event files under the run folder's `tensorboard/`."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One scalar a value."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the event file."""
        self._writer.close()


class MlflowLogger:
    """A run of the settings' hash, at `MLFLOW_TRACKING_URI` or in the run folder's mlflow.db."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        import mlflow
        from mlflow.tracking import MlflowClient

        uri = None if mlflow.is_tracking_uri_set() else f"sqlite:///{folder / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=uri)
        experiment = self._client.get_experiment_by_name("fedtune")
        number = experiment.experiment_id if experiment else None
        self._run = self._client.create_run(
            number or self._client.create_experiment("fedtune"), run_name=config.hash[:12]
        ).info.run_id
        self._client.log_param(self._run, "settings_hash", config.hash)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One metric a value."""
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=step)

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self._run)


def check_loggers(config: RunConfig) -> None:
    """Raise InputError when a logger's package isn't installed."""
    for name in config.output.loggers:
        if importlib.util.find_spec(_NEEDS[name]) is None:
            raise InputError(
                f"`{name}` is not installed",
                where="output.loggers",
                mend=f"pip install 'fedtune[{name}]'",
            )


def open_loggers(config: RunConfig, folder: Path) -> list[Logger]:
    """The loggers that `output.loggers` names, for the run in `folder`."""
    made: dict[str, Any] = {
        "tensorboard": lambda: TensorBoardLogger(folder / "tensorboard"),
        "mlflow": lambda: MlflowLogger(config, folder),
    }
    return [made[name]() for name in config.output.loggers]


def metric_lines(path: Path) -> list[dict[str, Any]]:
    """What a run has written so far, without a last line that a kill cut off.

    Raises InputError where another line is damaged.
    """
    texts = path.read_bytes().splitlines() if path.exists() else []
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except ValueError:
            if number == len(texts):
                break
            line = None
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            raise InputError(
                "is damaged",
                where=f"{path}:{number}",
                expected="a JSON object with its `step`",
                mend="put the file back as it was, or take the line out",
            )
        lines.append(line)
    return lines
