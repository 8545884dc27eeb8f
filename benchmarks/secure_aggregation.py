"""What secure aggregation costs a silo and the coordinator, beside Flower 1.41's own client code.

    python -m benchmarks.secure_aggregation [--parts flower large many masks reach]

CPU seconds of this process, one thread, the whole protocol: keys, shares, encoding, masks, signed
sets, unmasking, without the network. `flower` puts the same vector through both in turn, `large`
is 20 million parameters, `many` is the growth with the number of silos, with the largest number of
them that a round bears lost after sharing their secrets, `masks` is speed, bytes and error, `reach`
how wide a bound is by default beside a delta.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.flower_secagg import FlowerSilo, shared
from benchmarks.machine import machine
from fedtune.config.secure_aggregation import SecureAggregationConfig
from fedtune.config.training import TrainingConfig
from fedtune.secagg.coordinator import Coordinator
from fedtune.secagg.fixed_point import FixedPoint
from fedtune.secagg.masks import WORD, add_mask
from fedtune.secagg.silo import Silo
from fedtune.secagg.terms import Terms, choose
from fedtune.secagg.weighted import Weighted
from fedtune.tensors import TensorSet

SIGMA = 1e-4  # of a LoRA's delta
WIDEST = 0.3  # the settings' bound, 3,000 sigma; rounds after the first narrow it


@dataclass
class Measured:
    """One round: CPU seconds of each silo that ended it and of the coordinator, and its mean."""

    terms: Terms
    upload_bytes: int
    coordinator_seconds: float = 0.0
    silo_seconds: dict[str, float] = field(default_factory=dict)
    relative_error: float = 0.0
    halvings: tuple[int, ...] = (0,)  # of the next round

    @property
    def median_seconds(self) -> float:
        """Of the silos that ended the round."""
        return statistics.median(self.silo_seconds.values())


def deltas(parameters: int, silo: int) -> TensorSet:
    drawn = torch.Generator().manual_seed(silo)
    return TensorSet({"delta": torch.randn(parameters, generator=drawn) * SIGMA})


def one_round(
    silos: int, parameters: int, colluders: int, dropouts: int, halvings: tuple[int, ...] = (0,)
) -> Measured:
    """A round in which `dropouts` are lost after sharing; vectors are made as they are needed."""
    names = tuple(f"silo-{number:03d}" for number in range(silos))
    spec = deltas(parameters, 0).spec
    code = Weighted(spec, {"delta": WIDEST / 2 ** halvings[0]}, silos, max_weight=1)
    load = {"colluders": colluders, "dropouts": dropouts, "halvings": halvings}
    terms = choose("benchmark", 1, 0, names, code.words, min_silos=2, **load)
    keys = {name: Ed25519PrivateKey.generate() for name in names}
    public = {name: key.public_key().public_bytes_raw() for name, key in keys.items()}
    measured = Measured(terms, 0)
    spent = dict.fromkeys(names, 0.0)

    @contextmanager
    def timed(silo: str | None) -> Iterator[None]:
        began = time.process_time()
        yield
        seconds = time.process_time() - began
        if silo is None:
            measured.coordinator_seconds += seconds
        else:
            spent[silo] += seconds

    with timed(None):
        coordinator = Coordinator(terms, public)
    parties = {}
    for name in names:
        with timed(name):
            parties[name] = Silo(name, keys[name], terms, public, 2, colluders)

    def stage(work: Callable[[str, Silo], object], take: Callable[[str, object], None]) -> None:
        for name, silo in parties.items():
            with timed(name):
                said = work(name, silo)
            with timed(None):
                take(name, said)

    stage(lambda _, silo: silo.advertise(), coordinator.add_advert)  # type: ignore[arg-type]
    with timed(None):
        adverts = coordinator.close_adverts()
    stage(lambda name, silo: silo.share(adverts[name]), coordinator.add_shares)  # type: ignore[arg-type]
    with timed(None):
        sharers, held = coordinator.close_shares()
    for name in names[:dropouts]:
        del parties[name]
    total = np.zeros(parameters)
    for number, name in enumerate(parties):
        delta = deltas(parameters, number)
        with timed(name):
            vector = code.encode(delta, 1)
            sent = parties[name].mask(vector, held[name], sharers).tobytes()
        with timed(None):
            coordinator.add_masked(name, np.frombuffer(sent, WORD))
        total += delta["delta"].numpy()
        measured.upload_bytes = len(sent)
    with timed(None):
        survivors = coordinator.close_masked()
    stage(lambda _, silo: silo.agree(survivors), coordinator.add_agreement)  # type: ignore[arg-type]
    with timed(None):
        agreements = coordinator.close_agreements()
    stage(lambda _, silo: silo.unmask(agreements), coordinator.add_unmasking)  # type: ignore[arg-type]
    with timed(None):
        opened, there = coordinator.finish()
        decoded = code.decode(opened, len(there))
        measured.halvings = code.halvings_after(decoded, halvings)
    exact = total / len(there)
    off = np.linalg.norm(decoded.mean["delta"].numpy() - exact)
    measured.relative_error = float(off / np.linalg.norm(exact))
    measured.silo_seconds = {name: spent[name] for name in parties}
    return measured


def flower_round(silos: int, parameters: int) -> tuple[float, int]:
    """CPU seconds of one of Flower's clients in a whole round, and bytes of its masked vector."""
    threshold, every = silos // 2 + 1, [FlowerSilo(node) for node in range(1, silos + 1)]
    _, held = shared(every[1:], threshold)  # Flower's and the processor's first steps, untimed
    one, others = every[0], every[1:]
    vector = deltas(parameters, 0)["delta"].numpy()
    keys = {str(silo.node): silo.setup(silos, threshold) for silo in others}
    began = time.process_time()
    keys[str(one.node)] = one.setup(silos, threshold)
    seconds = time.process_time() - began
    dealt = {silo.node: silo.share(keys) for silo in others}
    held = {node: shares[one.node] for node, shares in dealt.items()}
    began = time.process_time()
    one.share(keys)
    masked = one.mask(held, vector)
    one.unmask([silo.node for silo in every], [])
    return seconds + time.process_time() - began, sum(map(len, masked))


def flower() -> None:
    print("\n10 silos, 1e6 parameters, a silo's whole work, three times in turn")
    print("Flower (s)  ours (s)  ratio  Flower (bytes a parameter)  ours")
    for _ in range(3):
        theirs, sent = flower_round(10, 10**6)
        ours = one_round(10, 10**6, 1, 2)
        seconds = ours.median_seconds
        print(
            f"{theirs:10.3f}  {seconds:8.3f}  {theirs / seconds:5.1f}  {sent / 1e6:26.2f}  "
            f"{ours.upload_bytes / 1e6:4.2f}",
            flush=True,
        )


def large() -> None:
    made = one_round(16, 20 * 10**6, 1, 3)
    print("\n16 silos, 20e6 parameters, 3 of them lost")
    print(f"a silo {made.median_seconds:.2f} s, the coordinator {made.coordinator_seconds:.2f} s")


def many() -> None:
    print("\n1e6 parameters, all silos measured; 5 % collude, 10 % are lost after sharing")
    print("silos  shareholders  threshold  quorum  a silo (s)  most (s)  coordinator (s)  error")
    for silos in (10, 30, 100, 300):
        load = silos // 20, silos // 10
        made = one_round(silos, 10**6, *load, _settled(silos))
        print(
            f"{silos:5}  {made.terms.shareholders:12}  {made.terms.threshold:9}  "
            f"{made.terms.quorum:6}  {made.median_seconds:10.3f}  "
            f"{max(made.silo_seconds.values()):8.3f}  {made.coordinator_seconds:15.2f}  "
            f"{made.relative_error:.1e}",
            flush=True,
        )


def reach() -> None:
    print("\nsteps of AdamW on noise  default bound over sigma  error of the mean of 10")
    for steps in (10, 100, 1000):
        weights = torch.zeros(10**5, requires_grad=True)
        optimizer = torch.optim.AdamW([weights], lr=1e-4, weight_decay=0.0)
        drawn = torch.Generator().manual_seed(0)
        for _ in range(steps):
            weights.grad = torch.randn(weights.shape, generator=drawn)
            optimizer.step()
        training = TrainingConfig(learning_rate=1e-4, max_steps=steps)
        bound = SecureAggregationConfig(enabled=True).bound_in(training)
        ratio = bound / float(weights.detach().std())
        # uniform rounding: a step over the root of six, a silo
        error = 2 * ratio / (FixedPoint(1, 10).levels - 1) / 6**0.5
        print(f"{steps:23}  {ratio:24.1f}  {error:.1e}")


def _settled(silos: int) -> tuple[int, ...]:
    """The halvings of later rounds; found with fewer numbers, whose size is the same."""
    halvings: tuple[int, ...] = (0,)
    for _ in range(4):
        halvings = one_round(silos, 10**4, 0, 0, halvings).halvings
    return halvings


def masks() -> None:
    words = np.zeros(20 * 10**6 // 3, WORD)
    speeds = []
    for number in range(10):
        began = time.process_time()
        add_mask(words, number.to_bytes(32, "big"))
        speeds.append(3 * len(words) / (time.process_time() - began))
    speed, best = statistics.median(speeds) / 1e6, max(speeds) / 1e6
    print(f"\na mask: {speed:.0f} M parameters/s a core, best {best:.0f}")
    halvings: tuple[int, ...] = (0,)
    for number in (1, 2, 3):
        made = one_round(10, 10**6, 0, 2, halvings)
        halvings = made.halvings
        print(
            f"round {number}: upload {made.upload_bytes / 1e6:.3f} bytes a parameter, relative "
            f"error of the mean of sigma {SIGMA} {made.relative_error:.1e}"
        )


PARTS = {"flower": flower, "masks": masks, "reach": reach, "large": large, "many": many}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    torch.set_num_threads(1)
    print(machine())
    for part in parser.parse_args().parts:
        PARTS[part]()


if __name__ == "__main__":
    main()
