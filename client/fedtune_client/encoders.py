"""How a silo's delta leaves it, and what stays behind until the next.

What int8 rounding took from a delta is added to the silo's next (error feedback: Seide et al. 2014,
"1-Bit Stochastic Gradient Descent"; Karimireddy et al. 2019, "Error Feedback Fixes SignSGD").
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flwr.app import Array

from fedtune.atomic import new_folder
from fedtune.config.federation import Encoding
from fedtune.delta_encoding import Encoded, as_bfloat16, as_int8, decode
from fedtune.tensors import TensorSet
from fedtune.training.checkpoints import finished_folders

Encoder = Callable[[TensorSet, int], Encoded]
"""Given a delta and its round, the delta as it travels."""
Draw = Callable[[int], np.random.Generator]
"""A round's random numbers, the same whenever that round is asked for."""

_KEPT = 2  # a coordinator that was killed asks again for the round that it hadn't finished
_FILE = "left.safetensors"


def encoder_of(encoding: Encoding, folder: Path, draw: Draw) -> Encoder:
    """The encoder that `federation.delta_encoding` names; `folder` is this run's and silo's."""
    if encoding == "int8":
        return ErrorFeedback(folder, draw)
    if encoding == "bfloat16":
        return lambda delta, round_number: as_bfloat16(delta)
    return as_float32


def as_float32(delta: TensorSet, round_number: int) -> Encoded:
    """The delta as it is."""
    return delta.to_wire()


@dataclass(frozen=True)
class ErrorFeedback:
    """Encodes as int8. What is left stays on the silo's disk, in `folder`: a silo that was killed
    goes on with it, and one that is asked for a round again starts from what it had before that
    round, and sends the same bytes.

    It is left of what training gave out: in a private run, of the noised delta. A reply that the
    coordinator never got counts as sent.
    """

    folder: Path
    draw: Draw

    def __call__(self, delta: TensorSet, round_number: int) -> Encoded:
        """The delta and what was left of earlier ones, as it travels.

        Raises ValueError on NaN or infinite values, NotWrittenError where the disk is full.
        """
        before = self._left_before(round_number)
        whole = delta if before is None else delta + before
        layout, array = as_int8(whole, self.draw(round_number))
        left = whole - decode(layout, Array(*array), delta.spec, "int8")
        self._keep(left, round_number)
        return layout, array

    def _left_before(self, round_number: int) -> TensorSet | None:
        earlier = [path for path in self._rounds() if _number(path) < round_number]
        return TensorSet.load(earlier[-1] / _FILE) if earlier else None

    def _keep(self, left: TensorSet, round_number: int) -> None:
        path = self.folder / f"round-{round_number:06d}"
        with new_folder(path, needed=left.payload_bytes) as draft:
            left.save(draft / _FILE)
        for old in self._rounds()[:-_KEPT]:
            shutil.rmtree(old)

    def _rounds(self) -> list[Path]:
        return finished_folders(self.folder, "round-")


def _number(path: Path) -> int:
    return int(path.name.removeprefix("round-"))
