"""The settings of where results go."""

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from fedtune.config.section import Section


class OutputConfig(Section):
    """Where results go."""

    dir: str = Field(
        "runs/run",
        min_length=1,
        description="The run folder: new, or empty; `~` is your home folder.",
    )
    loggers: list[Literal["tensorboard", "mlflow"]] = Field(
        default_factory=list, description="Loggers besides metrics.jsonl."
    )

    @property
    def folder(self) -> Path:
        """The run folder, `~` resolved."""
        return Path(self.dir).expanduser()

    @field_validator("dir")
    @classmethod
    def _can_be_a_folder(cls, value: str) -> str:
        try:
            path = Path(value).expanduser()
        except RuntimeError:
            raise ValueError(f"`{value}` begins with the home of a user who is not here") from None
        names = [os.fsencode(part) for part in path.parts]
        if b"\0" in os.fsencode(path):
            raise ValueError("can't be a folder's name: it holds a NUL character")
        for of, size, most in (
            ("a name in it", max(map(len, names), default=0), _LONGEST_NAME),
            ("it", len(os.fsencode(path)), _LONGEST_PATH),
        ):
            if size > most:
                raise ValueError(f"can't be a folder's name: {of} is longer than {most} bytes")
        return value


_LONGEST_NAME, _LONGEST_PATH = 255, 3000  # what file systems take, with room for the files inside
