"""Attacks of a cheating coordinator, on Flower 1.41's own SecAgg+ client code and on ours.

    python -m benchmarks.flower_attacks

Each is run for real: against `flwr.client.mod.secaggplus_mod`, and in the form that it has in
`tests/secagg/test_attacks.py` against `fedtune.secagg`. Small vectors, a few silos.
"""

import io
import time
from collections.abc import Callable

import numpy as np
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import (
    decrypt,
    encrypt,
    generate_shared_key,
)
from flwr.common.secure_aggregation.quantization import dequantize
from flwr.common.secure_aggregation.secaggplus_utils import (
    pseudo_rand_gen,
    share_keys_plaintext_concat,
    share_keys_plaintext_separate,
)
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    bytes_to_public_key,
    generate_key_pairs,
    public_key_to_bytes,
)

from benchmarks.flower_secagg import CLIPPING, MODULUS, TARGET, FlowerSilo, Keys, shared
from benchmarks.machine import machine
from fedtune.secagg.abort import AbortError
from fedtune.secagg.masks import add_mask
from tests.secagg.test_attacks import ATTACKS

SILOS, THRESHOLD, VICTIM = 7, 4, 1
SECRET = np.random.default_rng(7).normal(0, 1, 1000)  # the victim's vector
SMALL = np.random.default_rng(8).integers(0, 2**20, 8)  # of the search: an encoded vector's start
SEARCHED_BITS = 14


def silos_of(count: int = SILOS) -> list[FlowerSilo]:
    return [FlowerSilo(node) for node in range(VICTIM, VICTIM + count)]


def swapped_keys() -> str:
    """The victim is given the coordinator's keys as those of all others."""
    victim, forged = FlowerSilo(VICTIM), {n: generate_key_pairs() for n in range(2, SILOS + 1)}
    keys: Keys = {str(VICTIM): victim.setup(SILOS, THRESHOLD)}
    channel = {n: generate_key_pairs() for n in forged}
    for node, (_, public) in forged.items():
        keys[str(node)] = [public_key_to_bytes(public), public_key_to_bytes(channel[node][1])]
    sent, seeds = victim.share(keys), []
    for node, text in sent.items():
        key = generate_shared_key(channel[node][0], bytes_to_public_key(keys[str(VICTIM)][1]))
        seeds.append(share_keys_plaintext_separate(decrypt(key, text))[2])
    back = {}
    for node in forged:  # any text will do as a share for the victim
        key = generate_shared_key(channel[node][0], bytes_to_public_key(keys[str(VICTIM)][1]))
        back[node] = _encrypted(key, node)
    masked = victim.mask(back, SECRET)
    pairs = {
        node: generate_shared_key(secret, bytes_to_public_key(keys[str(VICTIM)][0]))
        for node, (secret, _) in forged.items()
    }
    return _opened(masked, combine_shares(seeds[:THRESHOLD]), pairs)


def both_kinds() -> str:
    """The victim is named among the living and among the dropped, in one message."""
    return _from_shares(lambda asked: ([*asked, VICTIM], [VICTIM]))


def different_survivors() -> str:
    """Some are told that the victim lives, the others that it was dropped (threshold 3 of 7)."""
    return _from_shares(
        lambda asked: ([*asked, VICTIM], []) if asked[0] <= 4 else (asked, [VICTIM]), threshold=3
    )


def threshold_of_one() -> str:
    """The coordinator sets the threshold: one share is then the secret itself."""
    silos = silos_of()
    keys, held = shared(silos, 1)
    masked = silos[0].mask(held[VICTIM], SECRET)
    helper = silos[1]
    helper.mask(held[helper.node], SECRET)
    revealed = helper.unmask([VICTIM], [VICTIM])
    seed, key = (combine_shares([share]) for _, share in revealed)
    return _opened(masked, seed, _pairs(key, keys))


def replayed_keys() -> str:
    """The others' mask keys of a round in which they were said to be dropped come back in the next,
    beside their fresh channel keys; then the victim is unmasked as a survivor should be.
    """
    silos = silos_of()
    others = [silo.node for silo in silos[1:]]
    old_keys, held = shared(silos, THRESHOLD)
    for silo in silos:
        silo.mask(held[silo.node], SECRET)
    told = [dict(silo.unmask([VICTIM] * THRESHOLD, others)) for silo in silos[:THRESHOLD]]
    old = {node: combine_shares([revealed[node] for revealed in told]) for node in others}

    keys = {str(silo.node): silo.setup(SILOS, THRESHOLD) for silo in silos}
    for_victim = {node: [old_keys[node][0], channel] for node, (_, channel) in keys.items()}
    for_victim[str(VICTIM)] = keys[str(VICTIM)]
    dealt = {silo.node: silo.share(keys) for silo in silos[1:]}
    dealt[VICTIM] = silos[0].share(for_victim)
    for silo in silos[1:]:
        silo.mask({n: dealt[n][silo.node] for n in dealt if n != silo.node}, SECRET)
    masked = silos[0].mask({node: dealt[node][VICTIM] for node in others}, SECRET)
    alive = [VICTIM, *others]
    seeds = [dict(silo.unmask(alive, []))[VICTIM] for silo in silos[1 : THRESHOLD + 1]]
    mine = bytes_to_public_key(keys[str(VICTIM)][0])
    pairs = {node: generate_shared_key(bytes_to_private_key(old[node]), mine) for node in others}
    return _opened(masked, combine_shares(seeds), pairs)


def seed_search() -> str:
    """A mask's seed is searched for; here of 2^14, of 2^28 or 2^32 in truth."""
    seed = _seed_of(9)
    masked = (SMALL + pseudo_rand_gen(seed, MODULUS, [(8,)])[0]) % MODULUS
    began = time.process_time()
    found = _searched(masked)
    if found is None:
        raise RuntimeError("the seed was not found")
    a_try = (time.process_time() - began) / (found + 1)
    core_hours = a_try * 2**28 / 3600
    tries = f"{found + 1} tries of {a_try * 1e6:.0f} us"
    return f"seed found after {tries}: 2^28 take {core_hours:.1f} core hours"


def seed_search_on_ours() -> str:
    """The same search on a vector under one of our masks."""
    words = SMALL.astype(np.uint64)
    add_mask(words, _seed_of(9))
    masked = (words % np.uint64(MODULUS)).astype(np.int64)
    if _searched(masked) is not None:
        raise RuntimeError("a seed was found")
    return "no seed found: the key is of 256 bits, none folded"


def _seed_of(number: int) -> bytes:
    """32 random bytes that Flower folds to a number below 2^14."""
    words = np.random.default_rng(number).integers(0, 2**32, 8, dtype=np.uint32)
    words[-1] = np.bitwise_xor.reduce(words[:-1]) ^ np.uint32(words[-1] % (1 << SEARCHED_BITS))
    return words.astype("<u4").tobytes()


def _searched(masked: np.ndarray) -> int | None:
    """The folded seed whose mask leaves small numbers."""
    for tried in range(1 << SEARCHED_BITS):
        mask = pseudo_rand_gen(tried.to_bytes(4, "little"), MODULUS, [(8,)])[0]
        if (((masked - mask) % MODULUS) < 2**20).all():
            return tried
    return None


def _from_shares(
    told: Callable[[list[int]], tuple[list[int], list[int]]], threshold: int = THRESHOLD
) -> str:
    """Honest keys and shares; at the end each silo is told what `told` says of the others."""
    silos = silos_of()
    keys, held = shared(silos, threshold)
    masked = {silo.node: silo.mask(held[silo.node], SECRET) for silo in silos}[VICTIM]
    seeds, secrets = [], []
    for silo in silos[1:]:
        asked = [silo.node, *(other.node for other in silos[1:] if other is not silo)]
        alive, dropped = told(asked)
        revealed = silo.unmask(alive, dropped)
        whose = [*zip(alive, revealed[: len(alive)], strict=True)]
        seeds += [share for node, (_, share) in whose if node == VICTIM]
        secrets += [share for _, share in revealed[len(alive) :]]
    seed, key = combine_shares(seeds[:threshold]), combine_shares(secrets[:threshold])
    return _opened(masked, seed, _pairs(key, keys))


def _pairs(key: bytes, keys: Keys) -> dict[int, bytes]:
    own = bytes_to_private_key(key)
    return {
        int(node): generate_shared_key(own, bytes_to_public_key(public))
        for node, (public, _) in keys.items()
        if int(node) != VICTIM
    }


def _encrypted(key: bytes, source: int) -> bytes:
    return encrypt(key, share_keys_plaintext_concat(source, VICTIM, b"x", b"x"))


def _opened(masked: list[bytes], seed: bytes, pairs: dict[int, bytes]) -> str:
    """The victim's vector without its masks, against what it sent."""
    arrays = [np.load(io.BytesIO(one), allow_pickle=False) for one in masked]
    shapes = [one.shape for one in arrays]
    own = pseudo_rand_gen(seed, MODULUS, shapes)[1]
    plain = arrays[1] - own
    for node, key in pairs.items():
        mask = pseudo_rand_gen(key, MODULUS, shapes)[1]
        plain = plain + (-mask if node < VICTIM else mask)
    values = dequantize([plain % MODULUS], CLIPPING, TARGET)[0]
    off = float(np.abs(values - SECRET).max())
    if off > 1e-4:
        raise RuntimeError(f"the vector was not opened: off by {off}")
    return f"the victim's vector opened, to within {off:.0e}"


FLOWER: dict[str, tuple[Callable[[], str], str]] = {
    "swapped public keys": (swapped_keys, "another mask key, signed by the coordinator"),
    "both kinds of share of one silo": (both_kinds, "both kinds of share of one silo"),
    "other survivors to others": (different_survivors, "other survivors to others"),
    "a threshold of one": (threshold_of_one, "a lower threshold"),
    "keys of an old round": (replayed_keys, "an advert of the round before"),
}


def ours(attack: str) -> str:
    """What an honest silo of ours says to it."""
    try:
        ATTACKS[attack][1]()
    except AbortError as refused:
        return f"refused: {refused}"
    raise RuntimeError(f"{attack} succeeded")


def main() -> None:
    print(machine())
    for name, (attack, same) in FLOWER.items():
        print(f"\n{name}\n  Flower: {attack()}\n  ours:   {ours(same)}")
    print(f"\nmask seed search\n  Flower: {seed_search()}\n  ours:   {seed_search_on_ours()}")


if __name__ == "__main__":
    main()
