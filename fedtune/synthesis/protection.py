"""What protects synthetic texts: the privacy of the run whose model wrote them, or nothing.

Drawing from a model looks at no row, so it costs nothing (post-processing): the texts have the
run's statement, whatever their number.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedtune.config.schema import RunConfig
from fedtune.data.digests import file_digest
from fedtune.errors import InputError
from fedtune.models.promise import STATEMENT
from fedtune.models.read_json import read_json
from fedtune.reports.manifest import check_manifest

PROSE = "privacy.md"
"""A private run's statement, for programs and for people."""
_PROMISE = ("epsilon", "delta", "unit", "relation", "accountant", "adversary")
_UNPROTECTED = (
    "These texts are not protected. The model that wrote them was trained without differential "
    "privacy: rows that it was trained on may appear in them word for word. Treat them as you "
    "would treat those rows."
)


@dataclass(frozen=True)
class Protection:
    """A private run's statement and its page of prose; both empty for a run without privacy."""

    statement: Mapping[str, Any]
    prose: str = ""

    @property
    def summary(self) -> str:
        """One paragraph, with no figure bare."""
        if not self.statement:
            return _UNPROTECTED
        promise, parties = self.statement["promise"], self.statement["parties"].values()
        sampling = " and ".join(sorted({party["sampling"] for party in parties}))
        return (
            "These texts have the privacy of the run whose model wrote them: epsilon "
            f"{_shown(promise['epsilon'])} at delta {_shown(promise['delta'])}, unit "
            f"{promise['unit']}, relation {promise['relation']}, sampling {sampling}, by the "
            f"{promise['accountant']['name']} accountant. It holds against {promise['adversary']}. "
            "Drawing texts looks at no row of the run's data, so it costs nothing more, however "
            "many are drawn (post-processing)."
        )


def protection_of(run: Path, config: RunConfig, *, not_private: bool) -> Protection:
    """What protects texts of the finished run in `run`; reads no weights.

    Raises InputError for a run without privacy unless `not_private` owns up to it, and for a
    private one whose statement is missing or is not the one that the run left.
    """
    if config.privacy.mode == "none":
        if not not_private:
            raise InputError(
                "the run was trained without differential privacy: rows that it was trained on "
                "may appear in its texts word for word",
                where=run,
                mend="use a run with `privacy.mode: local` or `central`, or give `--not-private` "
                "and treat the texts as you would treat those rows",
            )
        return Protection({})
    if not_private:
        raise InputError("the run is private", where="--not-private", mend="leave it out")
    statement, prose = run / STATEMENT, run / PROSE
    if not statement.is_file() or not prose.is_file():
        raise InputError(
            "there is no privacy statement, so nothing can be said of the texts",
            where=statement if not statement.is_file() else prose,
            expected="what a finished private run leaves",
            mend="finish the run with `--resume`",
        )
    _check_left_by_run(run)
    return Protection(_promised(statement, config), prose.read_text(encoding="utf-8"))


def _promised(path: Path, config: RunConfig) -> dict[str, Any]:
    """The statement in `path`. Raises InputError if it promises nothing, or a part is left out."""
    said = read_json(path)
    if said.get("mode") != config.privacy.mode or not isinstance(said.get("promise"), dict):
        raise InputError(
            "promises nothing under the run's mode",
            where=path,
            expected=f"`mode: {config.privacy.mode}` and a `promise`",
        )
    left_out = [name for name in _PROMISE if said["promise"].get(name) is None]
    if left_out or not said.get("parties"):
        name = f"promise.{left_out[0]}" if left_out else "parties"
        raise InputError(f"says no `{name}`", where=path)
    return said


def protection_files(
    protection: Protection, run: Path, texts: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """The statement of a file of texts, as plain values and as a page.

    `texts` are facts of the file: its name, SHA-256, rows of each label, how it was drawn.
    """
    facts = {
        "protected": bool(protection.statement),
        "summary": protection.summary,
        "texts": dict(texts),
        "label_counts": "chosen by whoever asked for the texts, not taken from the run's rows",
        "not_covered": _NOT_COVERED if protection.statement else [],
        "run": {"manifest_sha256": _digest(run / "manifest.json")},
        "inherited": dict(protection.statement),
    }
    rows = "\n".join(f"- {name}: `{_shown(value)}`" for name, value in texts.items())
    parts = ["# Privacy of synthetic texts", protection.summary, "## The texts", rows]
    if protection.statement:
        parts += ["## Not covered", "\n".join(f"- {line}" for line in _NOT_COVERED)]
        parts += ["## The run's own statement", _below(protection.prose)]
    return facts, "\n\n".join(parts) + "\n"


_NOT_COVERED = [
    "The names of the labels and the number of texts of each: they came with the request. If they "
    "were read from private rows, that was a release of its own.",
    "What the base model had learned before the run.",
    "Scores of the texts on real rows (`fedtune evaluate-synthetic`): they are exact.",
]


def _check_left_by_run(run: Path) -> None:
    """Raise InputError unless statement, config and model are those that the run's manifest has."""
    changed = [
        name
        for name in check_manifest(run)
        if name in (STATEMENT, PROSE, "config.yaml") or name.startswith("adapter/")
    ]
    if changed:
        raise InputError(
            "is not what the run left: the statement may be of another model",
            where=run / changed[0],
            expected=f"the file that {run / 'manifest.json'} lists",
        )


def _digest(path: Path) -> str | None:
    return file_digest(path) if path.is_file() else None


def _shown(value: Any) -> str:
    """In full: rounded down, an epsilon would promise too much."""
    return value if isinstance(value, str) else json.dumps(value)


def _below(prose: str) -> str:
    """The page with its headings two levels down."""
    lines = prose.strip().splitlines()
    return "\n".join(re.sub(r"^(#{1,4} )", r"##\1", line) for line in lines)
