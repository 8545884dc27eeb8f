"""A run's folder: one run each, never mixed up with another."""

from pathlib import Path

from fedtune.config.load import save_config
from fedtune.config.schema import RunConfig
from fedtune.errors import InputError


def claim_folder(out: Path, config: RunConfig, *, resume: bool) -> None:
    """Make `out` the folder of this run, or go on with the run that it holds.

    A checkpoint's own hash decides whether `config` is that run's. Raises InputError when the
    folder holds another run, none to resume, or can't be written.
    """
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
        return
    try:
        save_config(config, out / "config.yaml")
    except OSError as error:
        raise InputError(
            f"can't be written ({error.strerror})", where=out, mend="set another `output.dir`"
        ) from None
