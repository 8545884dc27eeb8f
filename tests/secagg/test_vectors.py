"""The file of test vectors against our code, and against plain arithmetic that is none of ours."""

import base64
import hashlib
import hmac
import json
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tests.secagg.make_vectors import PAIRS, SILOS, TERMS, vectors

FILE = json.loads((Path(__file__).parent / "vectors.json").read_text())


def parts(*texts: str) -> bytes:
    return b"".join(len(text).to_bytes(4, "big") + text.encode() for text in texts)


def hkdf(secret: bytes, *info: str) -> str:
    """RFC 5869 for one block of SHA-256."""
    extracted = hmac.digest(bytes.fromhex(FILE["digest"]), secret, "sha256")
    return hmac.digest(extracted, parts("fedtune secagg", *info) + b"\x01", "sha256").hex()


def exchanged(one: str, other: str, use: str) -> bytes:
    key = X25519PrivateKey.from_private_bytes(bytes.fromhex(FILE["silos"][one][f"{use}_key"]))
    public = bytes.fromhex(FILE["silos"][other][f"{use}_public"])
    return key.exchange(X25519PublicKey.from_public_bytes(public))


def stream(key: str, word: int) -> int:
    """A word of the key's mask: half of a block, which is the counter enciphered."""
    counter = modes.CTR((word // 2).to_bytes(16, "big"))
    octets = Cipher(algorithms.AES(bytes.fromhex(key)), counter).encryptor().update(bytes(16))
    return int.from_bytes(octets[8 * (word % 2) :][:8], "little")


def test_our_code_makes_the_file_again():
    assert json.loads(json.dumps(vectors())) == FILE


def test_digest_and_keys_follow_their_definitions():
    numbers = [1, 0, 3, 2, 2, 2]
    told = parts("fedtune secagg 2", "vectors", *map(str, numbers), "0,2", *SILOS)
    assert hashlib.sha256(told).hexdigest() == FILE["digest"]
    for name, silo in FILE["silos"].items():
        seed = bytes.fromhex(silo["seed"])
        assert hkdf(seed, "self mask", name) == silo["self_mask_key"]
        label = parts("fedtune secagg commitment", name) + TERMS.digest
        assert hashlib.sha256(label + seed).hexdigest() == silo["seed_commitment"]
    for one, other in PAIRS:
        key = FILE["pair_mask_keys"][f"{one} {other}"]
        assert hkdf(exchanged(one, other, "mask"), "mask", one, other) == key
        assert hkdf(exchanged(other, one, "mask"), "mask", one, other) == key
    assert (
        hkdf(exchanged("alpha", "beta", "channel"), "shares", "alpha", "beta")
        == (FILE["sealed"]["key"])
    )


def test_a_mask_is_the_counter_enciphered():
    told = FILE["masks"]
    assert [stream(told["key"], word) for word in range(4)] == told["first"]
    assert stream(told["key"], 39_999) == told["word_39999"]


def test_shares_lie_on_the_polynomial():
    told, prime = FILE["shamir"], int(FILE["shamir"]["prime"])
    first, second, third = (int(one, 16) for one in told["coefficients"])
    assert told["secret"] == told["coefficients"][0]
    for x, share in told["shares"].items():
        point = int(x)
        assert int(share, 16) == (first + second * point + third * point**2) % prime


def test_signatures_are_over_kind_and_content():
    seed = bytes.fromhex(FILE["silos"]["alpha"]["identity"])
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key()
    for kind, text in FILE["messages"].items():
        message = json.loads(text)
        assert message["kind"] == f"secagg {kind}"
        signed = f"fedtune {message['kind']} v1\n{message['content']}".encode()
        signature = base64.b64decode(message["signature"])
        public.verify(signature, signed)
    sets = json.loads(json.loads(FILE["messages"]["agreement"])["content"])
    assert (sets["shared"], sets["survivors"], sets["neighbours"]) == ("07", "05", "06")


def test_a_set_is_a_bit_for_each_silo_the_first_one_last():
    assert FILE["set"]["members"] == ["a", "l"]
    assert int(FILE["set"]["text"], 16) == 0b1000_0000_0001
    assert len(FILE["set"]["text"]) == 4


def test_fixed_point_words_and_the_masked_sum_by_hand():
    told = FILE["fixed_point"]
    assert told["levels"] == 2_642_244 // 3 + 1
    digits = [round((v / told["bound"] + 1) / 2 * (told["levels"] - 1)) for v in told["values"]]
    digits += [0, 0]
    words = [sum(digits[i + 3 * d] * 2_642_245**d for d in range(3)) for i in range(3)]
    assert words == told["words"]
    told = FILE["weighted"]
    flat = [number for row in told["delta"]["a"] for number in row] + told["delta"]["b"]
    bounds = [told["bounds"]["a"]] * 4 + [told["bounds"]["b"]]
    cut = [max(-1, min(1, x / bound)) for x, bound in zip(flat, bounds, strict=True)]
    shares = [number * told["weight"] / told["max_weight"] for number in cut]
    digits = [round((1 + share) / 2 * (told["levels"] - 1)) for share in shares] + [0]
    words = [sum(digits[i + 2 * d] * 2_642_245**d for d in range(3)) for i in range(2)]
    fields = sum(1 << 16 * n for n in range(4))  # both have numbers beyond all four thresholds
    assert told["words"] == [*words, told["weight"], 1, fields, 0, fields]  # one of `a` was cut
    total = FILE["sum"]
    for place in range(3):
        plain = sum(vector[place] for vector in total["vectors"].values()) % 2**64
        assert plain == total["sum"][place]
        for silo, vector in total["vectors"].items():
            sent = vector[place] + stream(FILE["silos"][silo]["self_mask_key"], place)
            for pair in PAIRS:
                if silo in pair:
                    mask = stream(FILE["pair_mask_keys"][" ".join(pair)], place)
                    sent += mask if silo == pair[0] else -mask
            assert sent % 2**64 == total["masked"][silo][place]
