"""What the coordinator sees of a silo's vector is noise, fresh in each round."""

import traceback

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from scipy import stats

from fedtune.secagg.abort import AbortError
from fedtune.secagg.masks import add_mask, pair_key, self_key
from tests.secagg.conftest import Round, names, terms_of

WORDS = 50_000


def seen(zeros: bool = True) -> dict[str, np.ndarray]:
    """The masked vectors of a round in which all silos send the same."""
    made = Round(terms_of(5, WORDS, dropouts=1))
    vector = np.zeros(WORDS, np.uint64) if zeros else np.full(WORDS, 77, np.uint64)
    shared, held = made.share(made.advertise())
    return {name: silo.mask(vector, held[name], shared) for name, silo in made.silos.items()}


@pytest.mark.parametrize("zeros", [True, False])
def test_a_masked_vector_is_uniform(zeros: bool):
    for words in seen(zeros).values():
        octets = np.bincount(words.view(np.uint8), minlength=256)
        assert stats.chisquare(octets).pvalue > 1e-5
        assert stats.kstest(words / 2.0**64, "uniform").pvalue > 1e-5
        bits = np.unpackbits(words.view(np.uint8)).reshape(-1, 64).mean(0)
        assert np.abs(bits - 0.5).max() < 6 * 0.5 / np.sqrt(WORDS)
        floats = words / 2.0**64
        assert abs(np.corrcoef(floats[:-1], floats[1:])[0, 1]) < 6 / np.sqrt(WORDS)


def test_equal_vectors_of_two_rounds_or_silos_have_nothing_in_common():
    first, second = seen(), seen()
    every = [*first.values(), *second.values()]
    for number, one in enumerate(every):
        for other in every[:number]:
            assert (one == other).mean() < 1e-3
            difference = (one - other).view(np.uint8)
            assert stats.chisquare(np.bincount(difference, minlength=256)).pvalue > 1e-6


def test_a_key_is_bound_to_round_purpose_and_silos():
    one, other = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    public = other.public_key().public_bytes_raw()
    pair, context = names(2), bytes(32)
    key = pair_key(one, public, context, "mask", pair)
    back = pair_key(other, one.public_key().public_bytes_raw(), context, "mask", pair)
    assert key == back
    others = {
        pair_key(one, public, b"\x01" * 32, "mask", pair),
        pair_key(one, public, context, "shares", pair),
        pair_key(one, public, context, "mask", pair[::-1]),
        pair_key(one, public, context, "mask", ("silo-00", "0silo-001")),
        self_key(key, context, pair[0]),
    }
    assert len(others | {key}) == 6


def test_no_secret_is_in_a_repr_or_in_what_an_abort_says():
    made = Round(terms_of(5))
    shared, held = made.share(made.advertise())
    silo = made.silos[names(5)[0]]
    known = [silo._seed, silo._own_share, silo._mask.private_bytes_raw()]
    known.append(silo._channel.private_bytes_raw())
    vector = np.zeros(5, np.uint64)
    survivors = made.mask(dict.fromkeys(made.silos, vector), shared, held)
    told = [repr(silo), repr(made.coordinator)]
    agreements = made.agree(survivors)
    revealed = silo.unmask(agreements)
    known += [*revealed.seeds.values(), *revealed.keys.values()]
    made.coordinator.add_unmasking(silo.name, revealed)
    told += [repr(silo), repr(revealed), repr(made.coordinator)]
    with pytest.raises(AbortError) as caught:
        silo.unmask(agreements)
    told += ["".join(traceback.format_exception(caught.value))]
    for text in told:
        assert not any(repr(one)[2:-1] in text or one.hex() in text for one in known)


def folded(key: bytes, words: int, bits: int) -> np.ndarray:
    """A mask as a weak implementation makes it: the key folded to `bits` for a Mersenne Twister."""
    small = int.from_bytes(key, "big") % (1 << bits)
    return np.random.RandomState(small).randint(0, 2**63, words).astype(np.uint64)


def test_the_search_that_breaks_folded_seeds_has_nothing_to_search_here():
    bits, words = 12, 64
    key = np.random.default_rng(5).bytes(32)
    secret = np.arange(words, dtype=np.uint64)  # small numbers, as encoded deltas are

    def broken(masked: np.ndarray) -> bool:
        """Whether some seed of the reduced space leaves small numbers."""
        return any(
            bool(((masked - folded(seed.to_bytes(32, "big"), words, bits)) < 2**20).all())
            for seed in range(1 << bits)
        )

    assert broken(secret + folded(key, words, bits))
    ours = secret.copy()
    add_mask(ours, key)
    assert not broken(ours)
