"""The last files of a finished run: its model card, then its manifest."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedtune.config.schema import RunConfig
from fedtune.data.load import DataFacts
from fedtune.models.promise import write_promise
from fedtune.privacy.done import Done
from fedtune.reports.manifest import write_manifest
from fedtune.reports.model_card import write_model_card
from fedtune.reports.privacy_statement import write_statement


def record_run(
    out: Path,
    config: RunConfig,
    data: DataFacts,
    scores: Mapping[str, Mapping[str, float]],
    done: Mapping[str, Done],
    *,
    command: str,
    silos: Mapping[str, int | None] | None = None,
) -> dict[str, Any]:
    """Write statement, card and manifest, replacing older ones.

    `out/adapter` gets the card, and what travels of the statement.
    `done` is the record of private steps. Gives the privacy statement.
    """
    rounds = None if silos is None else config.federation.rounds
    promised = write_statement(out, config.privacy, done, rounds=rounds)
    write_promise(out / "adapter", promised)
    write_model_card(out / "adapter", config, data, scores, promised, silos=silos)
    write_manifest(out, config, data, command)
    return promised
