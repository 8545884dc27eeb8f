"""The last files of a finished run: its model card, then its manifest."""

from collections.abc import Mapping
from pathlib import Path

from fedtune.config.schema import RunConfig
from fedtune.data.load import DataFacts
from fedtune.reports.manifest import write_manifest
from fedtune.reports.model_card import write_model_card


def record_run(
    out: Path,
    config: RunConfig,
    data: DataFacts,
    scores: Mapping[str, Mapping[str, float]],
    *,
    command: str,
    silos: Mapping[str, int | None] | None = None,
) -> None:
    """Write the card into `out/adapter` and the manifest into `out`, replacing older ones."""
    write_model_card(out / "adapter", config, data, scores, silos=silos)
    write_manifest(out, config, data, command)
