"""Write a file of synthetic texts, with what protects them beside it."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from fedtune.atomic import write_text
from fedtune.errors import InputError
from fedtune.models.saved import Loaded
from fedtune.synthesis.protection import Protection, protection_files
from fedtune.synthesis.texts import Request, write_texts


@dataclass(frozen=True)
class Synthesis:
    """What was written. `cut` counts texts that the limit of tokens ended, and not the model."""

    file: Path
    statement: Path
    page: Path
    rows: int
    cut: int
    protected: bool
    summary: str


def outputs(out: Path) -> tuple[Path, Path, Path]:
    """The file of texts, and the statement beside it for programs and for people."""
    names = (out.name, f"{out.name}.privacy.json", f"{out.name}.privacy.md")
    return tuple(out.with_name(name) for name in names)  # type: ignore[return-value]


def check_out(out: Path, *, force: bool) -> None:
    """Raise InputError unless `out` and its statement can be written; writes nothing."""
    if out.suffix != ".jsonl":
        raise InputError("is no .jsonl file", where=out, expected="a name such as texts.jsonl")
    for path in outputs(out):
        if path.is_dir():
            raise InputError("is a folder", where=path, mend="give another `--out`")
        if path.exists() and not force:
            raise InputError(
                "is there already", where=path, mend="give another `--out`, or `--force`"
            )
    there = out.absolute().parent
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError("can't be written", where=there, mend="give another `--out`")


def synthesize(
    loaded: Loaded,
    run: Path,
    request: Request,
    protection: Protection,
    out: Path,
    on_text: Callable[[int], None] = lambda count: None,
) -> Synthesis:
    """Draw the texts and write `out` last, after its statement: it is never there without one.

    Raises InputError on a model that writes no text, RunFailedError on one that writes only empty
    ones.
    """
    texts = write_texts(loaded, request, on_text)
    lines = "".join(
        json.dumps({"text": one.text, "label": one.label}, ensure_ascii=False) + "\n"
        for one in texts
    )
    facts = {
        "file": out.name,
        "sha256": hashlib.sha256(lines.encode()).hexdigest(),
        "labels": dict.fromkeys(request.labels, request.per_label),
        "prompt": request.template,
        "sampling": asdict(request.sampling),
    }
    statement, page = protection_files(protection, run, facts)
    file, as_json, as_page = outputs(out)
    write_text(as_json, json.dumps(statement, indent=2) + "\n")
    write_text(as_page, page)
    write_text(file, lines)
    cut = sum(one.cut for one in texts)
    protected = bool(protection.statement)
    return Synthesis(file, as_json, as_page, len(texts), cut, protected, protection.summary)
