"""Which examples a step takes: a pure function of seed and step, so that nothing is to be saved."""

import math
from functools import lru_cache

import numpy as np

from fedtune.config.training import TrainingConfig


def steps_for(settings: TrainingConfig, examples: int) -> int:
    """Optimizer steps for a data set of `examples`."""
    if settings.max_steps is not None:
        return settings.max_steps
    return max(1, round(settings.num_epochs * math.ceil(examples / settings.batch_size)))


def batch_indices(examples: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Examples of step `step` (from 0): a new order each pass, whose last batch may be short."""
    in_a_pass = math.ceil(examples / batch_size)
    order = _order(examples, seed, step // in_a_pass)
    start = step % in_a_pass * batch_size
    return [int(index) for index in order[start : start + batch_size]]


@lru_cache(maxsize=1)
def _order(examples: int, seed: int, number: int) -> np.ndarray:
    return np.random.default_rng([seed, number]).permutation(examples)
