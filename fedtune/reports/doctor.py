"""Is this machine fit for a run? One check a question, each with what to do about it."""

import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from fedtune import telemetry
from fedtune.config.schema import RunConfig
from fedtune.data.cache import cache_folder
from fedtune.errors import InputError

_GIB = 2**30
_LITTLE_DISK_BYTES = 2 * _GIB
_NO_DISK_BYTES = _GIB // 10
_LITTLE_MEMORY_BYTES = 2 * _GIB
_FEW_OPEN_FILES = 1024


@dataclass(frozen=True)
class Check:
    """One answer. `mend` says what to do unless all is well."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    mend: str | None = None


def examine(config: RunConfig) -> Iterator[Check]:
    """Every check of this machine for the run that `config` describes, in the order told."""
    yield python_version()
    yield from package_versions()
    yield from extras(config)
    yield gpu(config)
    for name, folder in (
        ("output folder", Path(config.output.dir)),
        ("cache folder", cache_folder()),
        ("temporary folder", Path(tempfile.gettempdir())),
    ):
        yield disk(name, folder)
    yield memory()
    yield open_files()
    yield _tried("model", lambda: _model(config))
    yield _tried("data", lambda: _data(config))
    yield telemetry_off()


def python_version() -> Check:
    """Python against what the package asks for."""
    wanted = importlib.metadata.metadata("fedtune")["Requires-Python"]
    found = platform.python_version()
    if SpecifierSet(wanted).contains(found, prereleases=True):
        return Check("python", "ok", found)
    return Check("python", "fail", found, f"install Python {wanted}")


def package_versions() -> Iterator[Check]:
    """One line for all required packages, or one for each that is missing or out of range."""
    wanted = [r for r in _requirements() if r.marker is None]
    wrong = [check for r in wanted if (check := _package(r)).status != "ok"]
    yield from wrong
    if not wrong:
        yield Check("packages", "ok", f"all {len(wanted)} required packages are in range")


def extras(config: RunConfig) -> Iterator[Check]:
    """The optional packages: absent is a failure only for a run that asks for them."""
    asked = {*config.output.loggers, config.federation.engine}
    for extra in ("ray", "tensorboard", "mlflow"):
        # an extra that asks for another package with its own extras names it here
        needed = [
            Requirement("ray") if extra == "ray" else requirement
            for requirement in _requirements()
            if requirement.marker and requirement.marker.evaluate({"extra": extra})
        ]
        checks = [_package(requirement) for requirement in needed]
        bad = next((check for check in checks if check.status != "ok"), None)
        if bad is None:
            yield Check(f"extra {extra}", "ok", ", ".join(check.found for check in checks))
            continue
        mend = f'pip install "fedtune[{extra}]"'
        if extra in asked:
            yield Check(f"extra {extra}", "fail", f"{bad.found}, and the config asks for it", mend)
        else:
            yield Check(f"extra {extra}", "ok", f"{bad.found} (optional: {mend})")


def gpu(config: RunConfig) -> Check:
    """The accelerator, and whether it computes in bf16."""
    import torch

    if not torch.cuda.is_available():
        found = f"none; training uses the CPU with {torch.get_num_threads()} threads"
        if torch.version.cuda and Path("/dev/nvidia0").exists():
            mend = f"the driver is too old for CUDA {torch.version.cuda}, or hidden: see nvidia-smi"
            return Check("gpu", "warn", "there is one, and torch can't use it", mend)
        return Check("gpu", "ok", found)
    facts = torch.cuda.get_device_properties(0)
    has_bf16 = torch.cuda.is_bf16_supported()
    found = (
        f"{torch.cuda.device_count()} x {facts.name}, {facts.total_memory / _GIB:.0f} GiB, "
        f"bf16 {'yes' if has_bf16 else 'no'}"
    )
    if config.training.precision == "bf16" and not has_bf16:
        return Check("gpu", "fail", found, "set `training.precision: auto` or `fp32`")
    return Check("gpu", "ok", found)


def disk(name: str, folder: Path) -> Check:
    """Free space where `folder` is or will be, and whether it can be written."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        return Check(name, "fail", f"{there} is a file", "name another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        return Check(
            name, "fail", f"{there} can't be written", "change its rights, or name another"
        )
    free = shutil.disk_usage(there).free
    found = f"{free / _GIB:.1f} GiB free ({folder})"
    if free < _NO_DISK_BYTES:
        return Check(name, "fail", found, "make room: a run can't be saved")
    if free < _LITTLE_DISK_BYTES:
        return Check(name, "warn", found, "make room: models and caches may not fit")
    return Check(name, "ok", found)


def memory() -> Check:
    """Free and total memory."""
    facts = psutil.virtual_memory()
    found = f"{facts.available / _GIB:.1f} of {facts.total / _GIB:.1f} GiB free"
    if facts.available < _LITTLE_MEMORY_BYTES:
        return Check("memory", "warn", found, "close programs; `--dry-run` tells the need")
    return Check("memory", "ok", found)


def open_files() -> Check:
    """How many files this process may have open."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _FEW_OPEN_FILES:
        return Check("open files", "warn", f"{soft} at most", f"ulimit -n {_FEW_OPEN_FILES}")
    return Check("open files", "ok", "no limit" if soft == resource.RLIM_INFINITY else str(soft))


def telemetry_off() -> Check:
    """Whether every dependency's telemetry is switched off in this process."""
    on = [name for name, value in telemetry.OFF.items() if os.environ.get(name) != value]
    if on:
        mend = "set " + " ".join(f"{name}={telemetry.OFF[name]}" for name in on)
        return Check("telemetry", "fail", f"not switched off: {', '.join(on)}", mend)
    return Check("telemetry", "ok", "off in all dependencies")


def _requirements() -> list[Requirement]:
    return [Requirement(line) for line in importlib.metadata.requires("fedtune") or []]


def _package(requirement: Requirement) -> Check:
    wanted = f"{requirement.name}{requirement.specifier}"
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        found = f"{requirement.name} is not installed"
        return Check("packages", "fail", found, f'pip install "{wanted}"')
    found = f"{requirement.name} {version}"
    if not requirement.specifier.contains(version, prereleases=True):
        return Check("packages", "fail", found, f'pip install "{wanted}"')
    return Check("packages", "ok", found)


def _model(config: RunConfig) -> str:
    from fedtune.models.base import load_base

    # a classifier's head is made anew: two labels stand in for the data's
    labels = config.task.labels or ["a", "b"]
    base = load_base(config.model, config.task.head, labels, seed=config.seed)
    count = sum(p.numel() for p in base.model.parameters())
    kind = type(base.model).__name__
    return f"{config.model.path}: {kind}, {count:,} parameters, {len(base.tokenizer):,} tokens"


def _data(config: RunConfig) -> str:
    from fedtune.data.load import load_splits

    splits = load_splits(config)
    bad = f", {splits.bad_rows.count} bad rows left out" if splits.bad_rows.count else ""
    validation = f", {len(splits.validation)} validation" if splits.validation else ""
    return f"{len(splits.train)} training{validation} and {len(splits.test)} test rows{bad}"


def _tried(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, "ok", check())
    except InputError as error:
        found = f"{error.where}: {error.problem}" if error.where else error.problem
        mend = error.mend or (f"wanted: {error.expected}" if error.expected else None)
        return Check(name, "fail", found, mend)
