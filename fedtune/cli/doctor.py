"""`fedtune doctor`: is this machine fit for a run."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

_MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


def doctor(
    path: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG.yaml]", help="Left out: the defaults.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="section.key=value")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Check versions, GPU, disk, memory, model and data; one line each, with the mend.

    Ends with status 1 if a check failed.

    Example: fedtune doctor lora.yaml
    """
    from fedtune.config.load import load_config
    from fedtune.reports.doctor import examine

    words = overrides or []
    if path is not None and "=" in str(path) and not path.exists():
        path, words = None, [str(path), *words]
    config = load_config(path, words)
    checks = []
    for check in examine(config):
        checks.append(check)
        if not as_json:
            print(f"{_MARKS[check.status]}  {check.name}: {check.found}", flush=True)
            if check.mend:
                print(f"      to mend: {check.mend}", flush=True)
    fit = all(check.status != "fail" for check in checks)
    if as_json:
        told = {"fit": fit, "checks": [dataclasses.asdict(check) for check in checks]}
        print(json.dumps(told, indent=2))
    return 0 if fit else 1
