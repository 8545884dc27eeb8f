"""manifest.json: what made a run's files, and the SHA-256 of each. Written last, at one stroke."""

import dataclasses
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import psutil
import torch
from packaging.requirements import Requirement

from fedtune.atomic import write_text
from fedtune.config.schema import RunConfig
from fedtune.data.digests import file_digest
from fedtune.data.load import DataFacts
from fedtune.errors import InputError
from fedtune.training.checkpoints import run_hash
from fedtune.training.run_folder import LOCK, read_base

_NAME = "manifest.json"
_WORKING = "checkpoints"


def write_manifest(out: Path, config: RunConfig, data: DataFacts, command: str) -> Path:
    """Describe the finished run in `out`; give the manifest's path.

    Every file is listed but the manifest itself and the checkpoints, which only a run that goes
    on reads. Nothing names the machine, its user or a folder outside the run. `settings_hash` is of
    the settings alone, `run_hash` of settings and data: checkpoints are bound to it. Where people
    in the data are promised privacy, nothing is told that depends on just whose rows they were.
    """
    public = config.privacy.mode == "none"
    facts = {
        "command": command,
        "settings_hash": config.hash,
        "run_hash": run_hash(config, data) if public else None,
        "seed": config.seed,
        "packages": package_versions(),
        "machine": machine(),
        "base_model": read_base(out),
        "data": dataclasses.asdict(data) if public else {},
        "files": file_digests(out),
    }
    write_text(out / _NAME, json.dumps(facts, indent=2) + "\n")
    return out / _NAME


def check_manifest(out: Path) -> list[str]:
    """Files of `out` that are missing, new or other than the manifest says.

    Raises InputError if there is no manifest, or none that can be read.
    """
    try:
        said = dict(json.loads((out / _NAME).read_text())["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"not a manifest ({error})", where=out / _NAME) from None
    found = file_digests(out)
    return sorted(name for name in {*said, *found} if said.get(name) != found.get(name))


def file_digests(out: Path) -> dict[str, str]:
    """SHA-256 of each output file below `out`, by its path there."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file())
    names = {path.relative_to(out).as_posix(): path for path in files}
    return {
        name: file_digest(path)
        for name, path in names.items()
        if name not in (_NAME, LOCK) and not name.startswith(f"{_WORKING}/")
    }


def package_versions() -> dict[str, str]:
    """Installed versions of fedtune and of every package that it requires."""
    lines = importlib.metadata.requires("fedtune") or []
    required = [r.name for r in map(Requirement, lines) if r.marker is None]
    return {name: importlib.metadata.version(name) for name in ["fedtune", *sorted(required)]}


def machine() -> dict[str, Any]:
    """What the numbers depend on, and no name."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": gpus,
    }
