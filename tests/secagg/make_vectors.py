"""Test vectors of secure aggregation, for another implementation to check itself against.

    python -m tests.secagg.make_vectors > tests/secagg/vectors.json

All keys, seeds and coefficients are SHA-256 of a label, so that the file comes out the same again.
Bytes are hex, words decimal.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fedtune.secagg.fixed_point import FixedPoint
from fedtune.secagg.masks import WORD, add_mask, commitment, pair_key, self_key
from fedtune.secagg.messages import (
    Advert,
    Agreement,
    write_advert,
    write_agreement,
    write_set,
)
from fedtune.secagg.shamir import PRIME, SHARE_BYTES, combine
from fedtune.secagg.terms import Terms
from fedtune.secagg.weighted import Weighted
from fedtune.tensors import TensorSet

SILOS = ("alpha", "beta", "gamma")
TERMS = Terms("vectors", 1, 0, SILOS, 3, shareholders=2, threshold=2, quorum=2, halvings=(0, 2))
MANY = tuple("abcdefghijkl")
SET_TERMS = Terms("vectors", 1, 0, MANY, words=3, shareholders=2, threshold=2, quorum=7)
PAIRS = (("alpha", "beta"), ("alpha", "gamma"), ("beta", "gamma"))
VALUES, BOUND = [-2.0, 2.0, 0.0, 1.0, -1.0, 2.0, -2.0], 2.0  # whole numbers of steps: no rounding
WEIGHTED = Weighted((("a", (2, 2)), ("b", (1,))), {"a": 2.0, "b": 0.5}, len(SILOS), max_weight=2)
DELTA = {"a": [[-2.0, 0.0], [2.0, 9.0]], "b": [-0.5]}
LONG = 40_000  # words: more than the stream is made of at a time


def secret(label: str) -> bytes:
    return hashlib.sha256(f"fedtune secagg vectors {label}".encode()).digest()


def exchange_key(silo: str, use: str) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(secret(f"{use} {silo}"))


def public(silo: str, use: str) -> bytes:
    return exchange_key(silo, use).public_key().public_bytes_raw()


def mask_of(key: bytes, words: int = LONG) -> np.ndarray:
    mask = np.zeros(words, WORD)
    add_mask(mask, key)
    return mask


def vectors() -> dict[str, Any]:
    """The whole file."""
    context = TERMS.digest
    pairs = {
        f"{one} {other}": pair_key(
            exchange_key(one, "mask"), public(other, "mask"), context, "mask", (one, other)
        )
        for one, other in PAIRS
    }
    own = {silo: self_key(secret(f"seed {silo}"), context, silo) for silo in SILOS}
    return {
        "terms": {**{name: getattr(TERMS, name) for name in TERMS.__dataclass_fields__}},
        "digest": context.hex(),
        "silos": {
            silo: {
                "identity": secret(f"identity {silo}").hex(),
                "channel_key": secret(f"channel {silo}").hex(),
                "channel_public": public(silo, "channel").hex(),
                "mask_key": secret(f"mask {silo}").hex(),
                "mask_public": public(silo, "mask").hex(),
                "seed": secret(f"seed {silo}").hex(),
                "seed_commitment": commitment(secret(f"seed {silo}"), context, silo).hex(),
                "self_mask_key": own[silo].hex(),
            }
            for silo in SILOS
        },
        "pair_mask_keys": {names: key.hex() for names, key in pairs.items()},
        "masks": {
            "key": own["alpha"].hex(),
            "first": [int(word) for word in mask_of(own["alpha"])[:4]],
            "word_39999": int(mask_of(own["alpha"])[39_999]),
        },
        "shamir": _sharing(),
        "sealed": _sealed(context),
        "messages": _messages(context),
        "set": {"silos": MANY, "members": MANY[::11], "text": write_set(MANY[::11], SET_TERMS)},
        "fixed_point": _encoded(),
        "weighted": _weighted(),
        "sum": _summed(own, pairs),
    }


def _sharing() -> dict[str, Any]:
    coefficients = [int.from_bytes(secret(f"coefficient {n}"), "big") for n in range(3)]
    shares = {
        x: (sum(c * x**n for n, c in enumerate(coefficients)) % PRIME).to_bytes(SHARE_BYTES, "big")
        for x in (1, 2, 5, 7)
    }
    return {
        "prime": str(PRIME),
        "coefficients": [f"{one:064x}" for one in coefficients],
        "shares": {str(x): share.hex() for x, share in shares.items()},
        "secret": combine({x: shares[x] for x in (1, 5, 7)}).hex(),
    }


def _sealed(context: bytes) -> dict[str, str]:
    """A pair of shares from alpha to beta: of the mask key, then of the seed."""
    key = pair_key(
        exchange_key("alpha", "channel"),
        public("beta", "channel"),
        context,
        "shares",
        ("alpha", "beta"),
    )
    shares = b"\x00" + secret("share of key") + b"\x00" + secret("share of seed")
    sealed = ChaCha20Poly1305(key).encrypt(bytes(12), shares, None)
    return {"key": key.hex(), "shares": shares.hex(), "sealed": sealed.hex()}


def _messages(context: bytes) -> dict[str, str]:
    identity = Ed25519PrivateKey.from_private_bytes(secret("identity alpha"))
    advert = Advert(
        context=context.hex(),
        silo="alpha",
        channel_key=public("alpha", "channel").hex(),
        mask_key=public("alpha", "mask").hex(),
        seed_commitment=commitment(secret("seed alpha"), context, "alpha").hex(),
        shareholders=("beta", "gamma"),
    )
    agreement = Agreement(
        context=context.hex(),
        silo="alpha",
        shared=write_set(SILOS, TERMS),
        survivors=write_set(("alpha", "gamma"), TERMS),
        neighbours=write_set(("beta", "gamma"), TERMS),
    )
    return {
        "advert": write_advert(advert, identity),
        "agreement": write_agreement(agreement, identity),
    }


def _encoded() -> dict[str, Any]:
    numbers = FixedPoint(len(VALUES), len(SILOS))
    words = numbers.encode(np.array(VALUES), np.full(len(VALUES), BOUND))
    return {
        "silos": len(SILOS),
        "bound": BOUND,
        "levels": numbers.levels,
        "values": VALUES,
        "words": [int(word) for word in words],
    }


def _weighted() -> dict[str, Any]:
    """A silo's whole vector: numbers times weight over the largest weight, the weight, the cuts."""
    delta = TensorSet({name: torch.tensor(values) for name, values in DELTA.items()})
    return {
        "bounds": dict(WEIGHTED.bounds),
        "levels": WEIGHTED.levels,
        "max_weight": WEIGHTED.max_weight,
        "delta": DELTA,
        "weight": 1,
        "words": [int(word) for word in WEIGHTED.encode(delta, 1)],
    }


def _summed(own: Mapping[str, bytes], pairs: Mapping[str, bytes]) -> dict[str, Any]:
    """All three silos' vectors under their masks, and the sum of what they sent, opened."""
    plain, masked = {}, {}
    total = np.zeros(TERMS.words, WORD)
    for silo in SILOS:
        plain[silo] = np.frombuffer(secret(f"vector {silo}")[:24], WORD)
        masked[silo] = plain[silo].copy()
        add_mask(masked[silo], own[silo])
        for names, key in pairs.items():
            if silo in names.split():
                add_mask(masked[silo], key, subtract=silo != names.split()[0])
        total += masked[silo]
    for key in own.values():
        add_mask(total, key, subtract=True)
    return {
        "vectors": {silo: [int(word) for word in words] for silo, words in plain.items()},
        "masked": {silo: [int(word) for word in words] for silo, words in masked.items()},
        "sum": [int(word) for word in total],
    }


if __name__ == "__main__":
    print(json.dumps(vectors(), indent=1))
