"""What a silo learned in a round."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedtune.tensors import TensorSet


@dataclass(frozen=True)
class LocalUpdate:
    """What a silo learned: trained minus received, on `examples` examples."""

    delta: TensorSet
    examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)
