"""Telemetry of every dependency is off: what a hospital runs phones nobody."""

import os

OFF = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
}
"""Environment variables and the value that switches telemetry off."""


def switch_off() -> None:
    """Set the variables, before the libraries that read them are imported.

    Set, not defaulted: a stray variable must not switch telemetry on.
    """
    os.environ.update(OFF)
