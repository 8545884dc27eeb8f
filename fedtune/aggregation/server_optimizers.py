"""How an averaged delta moves the global state: as it is, FedAvgM or FedAdam.

A step depends on (state, delta, moments) alone, so a checkpoint of the three is enough to go
on from. FedAvgM: Hsu et al. 2019. FedAdam: Reddi et al. 2021, without bias correction and with
the second moment starting at tau squared, as printed there.
"""

from collections.abc import Mapping

from fedtune.config.federation import ServerOptimizerConfig
from fedtune.tensors import TensorSet

Moments = Mapping[str, TensorSet]
"""Named moments, each of the state's spec; empty for `none`."""


def start_moments(config: ServerOptimizerConfig, state: TensorSet) -> Moments:
    """The moments before the first round."""
    zeros = state * 0.0
    if config.name == "fedavgm":
        return {"momentum": zeros}
    if config.name == "fedadam":
        return {"first": zeros, "second": zeros.map(lambda t: t + config.tau**2)}
    return {}


def server_step(
    config: ServerOptimizerConfig, state: TensorSet, delta: TensorSet, moments: Moments
) -> tuple[TensorSet, Moments]:
    """The next state and moments. `delta` points downhill (trained minus received), and is used
    up: its memory may become the next state's.
    """
    if config.name == "fedavgm":
        momentum = moments["momentum"] * config.momentum + delta
        return state + momentum * config.rate, {"momentum": momentum}
    if config.name == "fedadam":
        return _fedadam(config, state, delta, moments)
    memory = delta.flat()
    return TensorSet.of_flat(memory.add_(state.flat()), state.spec), {}


def _fedadam(
    config: ServerOptimizerConfig, state: TensorSet, delta: TensorSet, moments: Moments
) -> tuple[TensorSet, Moments]:
    first = moments["first"] * config.beta1 + delta * (1 - config.beta1)
    squared = delta.map(lambda tensor: tensor.square())
    second = moments["second"] * config.beta2 + squared * (1 - config.beta2)
    step = first.zip(second, lambda m, v: m / (v.sqrt() + config.tau))
    return state + step * config.rate, {"first": first, "second": second}
