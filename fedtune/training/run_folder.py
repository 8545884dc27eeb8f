"""A run's folder: one run each, never mixed up with another."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from fedtune.atomic import writable, write_text
from fedtune.config.load import load_config, save_config
from fedtune.config.schema import RunConfig
from fedtune.errors import InputError
from fedtune.models.adapter_files import adapter_digest
from fedtune.models.base_files import base_digest, local_folder
from fedtune.models.read_json import read_json

LOCK = ".lock"
"""Kept by the process that is at work in a folder; no part of the run."""
Command = Literal["train", "simulate"]
_BEGUN = "run.json"
"""Which command began the run, and what it started from: base model and `adapter.init_from`."""
PARTITION = "partition.json"
"""A federation's division of the rows into silos."""
_FIRST_FILES = {LOCK, *(n + end for n in (_BEGUN, "config.yaml") for end in ("", ".part"))}
"""What a run that was killed in its first moment may have left."""


def claim_folder(out: Path, config: RunConfig, command: Command, *, resume: bool) -> None:
    """Make `out` the folder of this run, or go on with the run that it holds.

    Raises InputError when the folder holds another run, none to resume, one of another command or
    from a base model or an adapter that was edited since, or can't be written.
    """
    check_folder(out, config, command, resume=resume)
    if resume:
        _check_base(out, config)
        _check_init(out, config)
        return
    base = {"path": config.model.path, "sha256": base_digest(config.model)}
    with writable(out, "set another `output.dir`"):
        begun = {"command": command, "base_model": base, "init_from": _init_digest(config)}
        write_text(out / _BEGUN, json.dumps(begun, indent=2) + "\n")
        save_config(config, out / "config.yaml")


@contextmanager
def kept_unless_refused(out: Path, *, resume: bool) -> Iterator[None]:
    """What was claimed for a new run is given back if that is refused inside: it never began."""
    try:
        yield
    except InputError:
        if not resume:
            for name in ("config.yaml", _BEGUN, PARTITION):
                (out / name).unlink(missing_ok=True)
        raise


def check_folder(out: Path, config: RunConfig, command: Command, *, resume: bool) -> None:
    """Raise InputError unless `out` can be a run's folder; writes nothing."""
    holds_run = (out / "config.yaml").exists()
    if holds_run and not resume:
        raise InputError(
            "the folder holds another run",
            where=out,
            mend="give `--resume` to go on with it, or set another `output.dir`",
        )
    if resume and not holds_run:
        raise InputError("there is no run to resume", where=out)
    if resume:
        _check_same_run(out / "config.yaml", config)
        _check_same_command(out, command)
    elif out.is_dir() and (others := sorted({p.name for p in out.iterdir()} - _FIRST_FILES)):
        raise InputError(
            f"the folder is no run's and holds other files (`{others[0]}`)",
            where=out.absolute(),
            mend="set `output.dir` to a folder that is new or empty",
        )
    there = out.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise InputError(
            "is a file, where a folder is wanted", where=there, mend="set another `output.dir`"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(
            "can't be written", where=there, mend="change its rights, or set another `output.dir`"
        )


def check_local_start(out: Path, config: RunConfig) -> None:
    """Raise InputError when the run in `out` started from other files than are now on this disk.

    Only the run itself can tell for a base by hub id, once it has loaded the model.
    """
    if local_folder(config.model) is not None:
        _check_base(out, config)
    _check_init(out, config)


def read_base(out: Path) -> dict[str, Any]:
    """Path and SHA-256 of the base model that the run in `out` was started on."""
    base = read_json(out / _BEGUN).get("base_model")
    if not isinstance(base, dict):
        raise InputError("is damaged", where=out / _BEGUN, expected="`base_model`")
    return base


def _check_same_command(out: Path, command: Command) -> None:
    begun = read_json(out / _BEGUN).get("command")
    if begun != command:
        raise InputError(
            f"the run was started with `fedtune {begun}`, not `fedtune {command}`",
            where=out / _BEGUN,
            mend=f"resume it with `fedtune {begun}`, or set another `output.dir`",
        )


def _check_base(out: Path, config: RunConfig) -> None:
    if read_base(out).get("sha256") != base_digest(config.model):
        raise InputError(
            f"the base model `{config.model.path}` is not what it was when the run began",
            where=out / _BEGUN,
            mend="put its files back as they were, or set another `output.dir`",
        )


def _check_init(out: Path, config: RunConfig) -> None:
    if read_json(out / _BEGUN).get("init_from") != _init_digest(config):
        raise InputError(
            f"the adapter `{config.adapter.init_from}` is not what it was when the run began",
            where=out / _BEGUN,
            mend="put its files back as they were, or set another `output.dir`",
        )


def _init_digest(config: RunConfig) -> str | None:
    start = config.adapter.init_from
    return None if start is None else adapter_digest(Path(start))


def _check_same_run(saved: Path, config: RunConfig) -> None:
    """Raise InputError when the run of `saved` has other settings; the first few are named."""
    before = load_config(saved)
    if before.hash == config.hash:
        return
    old, new = _fields(before.deciding()), _fields(config.deciding())
    changed = [
        f"{name}: {old.get(name)} then, {new.get(name)} now"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
    raise InputError(
        f"the run was started with other settings ({'; '.join(changed[:3])})",
        where=saved,
        mend=f"resume with `{saved}`, or set another `output.dir`",
    )


def _fields(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names of a tree of settings, and their values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= (
            _fields(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
