"""Keys, certificates, requests to join, the roster: what is made is read, what is changed isn't."""

import json
import os
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.verification import PolicyBuilder, Store
from hypothesis import given
from hypothesis import strategies as st

from fedtune.errors import InputError
from fedtune.identity import certificates, enrolment, roster, signed
from fedtune.identity.keys import (
    NodeKeys,
    fingerprint,
    load_identity,
    load_keys,
    load_private_key,
    new_flower_key,
    new_identity,
    new_keys,
    new_tls_key,
    public_bytes,
    save_private_key,
)

CONSORTIUM = new_identity()
PINNED = fingerprint(public_bytes(CONSORTIUM))
AUTHORITY_KEY = new_tls_key()
AUTHORITY = certificates.new_authority(AUTHORITY_KEY, "trial")
EMPTY = roster.Roster(federation="trial", version=1, members=())


def node(silo: str = "north") -> tuple[NodeKeys, str]:
    keys = NodeKeys(new_identity(), new_tls_key(), new_flower_key())
    return keys, enrolment.new_request(silo, keys, 1)


def admitted(text: str, before: roster.Roster = EMPTY) -> tuple[str, roster.Roster]:
    asked = enrolment.read_request(text)
    after, certificate = enrolment.admit(asked, before, AUTHORITY, AUTHORITY_KEY, days=30)
    admission = enrolment.Admission(
        federation="trial",
        silo=asked.silo,
        coordinator="localhost:9092",
        consortium=public_bytes(CONSORTIUM).hex(),
        authority=certificates.pem(AUTHORITY),
        certificate=certificates.pem(certificate),
        roster=roster.sign(after, CONSORTIUM),
    )
    return enrolment.sign_admission(admission, CONSORTIUM), after


def test_private_keys_are_their_owners_alone_and_read_back(tmp_path: Path):
    old = os.umask(0)
    try:
        keys = new_keys(tmp_path / "keys")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    read = load_keys(tmp_path / "keys")
    for name, path in NodeKeys.files(tmp_path / "keys").items():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert getattr(read, name).public_key() == getattr(keys, name).public_key()
    with pytest.raises(InputError, match="is there already"):
        new_keys(tmp_path / "keys")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o700 | 0o077])
def test_a_key_that_others_may_read_is_refused(mode: int, tmp_path: Path):
    path = tmp_path / "identity.pem"
    save_private_key(new_identity(), path)
    path.chmod(mode)
    with pytest.raises(InputError, match=r"others may read.*\n.*0600"):
        load_private_key(path)


def test_a_key_is_not_replaced_and_what_is_no_key_is_told(tmp_path: Path):
    path = tmp_path / "identity.pem"
    save_private_key(new_identity(), path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="is there already"):
        save_private_key(new_identity(), path)
    assert path.read_bytes() == before
    path.write_bytes(b"-----BEGIN PRIVATE KEY-----\nnonsense\n")
    with pytest.raises(InputError, match="is no private key"):
        load_private_key(path)
    with pytest.raises(InputError, match="no such file"):
        load_private_key(tmp_path / "none.pem")
    path.unlink()
    save_private_key(new_tls_key(), path)
    with pytest.raises(InputError, match="is no identity"):
        load_identity(path)


def test_certificates_are_those_that_a_verifier_takes_for_their_purpose_only():
    key = new_tls_key()
    server = certificates.server_certificate(
        key, ["coordinator.example", "127.0.0.1"], AUTHORITY, AUTHORITY_KEY
    )
    request = certificates.signing_request(new_tls_key(), "north")
    client = certificates.client_certificate(request, "north", AUTHORITY, AUTHORITY_KEY)
    builder = PolicyBuilder().store(Store([AUTHORITY]))
    for host in ("coordinator.example",):
        builder.build_server_verifier(x509.DNSName(host)).verify(server, [])
    with pytest.raises(x509.verification.VerificationError):
        builder.build_server_verifier(x509.DNSName("other.example")).verify(server, [])
    # a silo's certificate can't stand for the coordinator
    usage = client.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not client.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    client.verify_directly_issued_by(AUTHORITY)


def test_a_signing_request_must_be_signed_with_its_own_key():
    request = certificates.signing_request(new_tls_key(), "north")
    content = request.public_bytes(certificates.serialization.Encoding.DER)
    forged = x509.load_der_x509_csr(content[:-1] + bytes([content[-1] ^ 1]))  # of the signature
    with pytest.raises(ValueError, match="not signed with its own key"):
        certificates.client_certificate(forged, "north", AUTHORITY, AUTHORITY_KEY)
    wide = x509.CertificateSigningRequestBuilder().subject_name(request.subject)
    wide = wide.sign(ec.generate_private_key(ec.SECP521R1()), certificates.hashes.SHA256())
    with pytest.raises(ValueError, match="P-256"):
        certificates.client_certificate(wide, "north", AUTHORITY, AUTHORITY_KEY)


def test_a_silo_joins_and_reads_the_roster_with_the_pinned_fingerprint():
    keys, request = node()
    text, after = admitted(request)
    given, read = enrolment.read_admission(text, PINNED.upper(), "north", keys)
    assert (read, read.version) == (after, 2)
    assert [member.silo for member in read.members] == ["north"]
    assert read.member("north").identity == public_bytes(keys.identity).hex()
    assert given.coordinator == "localhost:9092"


def test_an_admission_for_others_is_refused():
    keys, request = node()
    text, _ = admitted(request)
    others, _ = node()
    with pytest.raises(ValueError, match="other keys"):
        enrolment.read_admission(text, PINNED, "north", others)
    with pytest.raises(ValueError, match="this is `south`"):
        enrolment.read_admission(text, PINNED, "south", keys)
    with pytest.raises(ValueError, match="another fingerprint"):
        enrolment.read_admission(text, fingerprint(b"x" * 32), "north", keys)


def test_an_admission_that_only_names_the_consortium_is_refused():
    keys, request = node()
    text, _ = admitted(request)
    inside = signed.contents("admission", text)
    forged = signed.seal("admission", inside.replace("localhost", "elsewhere"), new_identity())
    with pytest.raises(ValueError, match="signature is not of the key"):
        enrolment.read_admission(forged, PINNED, "north", keys)


def test_a_request_can_not_name_another_identity():
    _, request = node()
    changed = json.loads(request)
    inside = json.loads(changed["content"])
    inside["identity"] = public_bytes(new_identity()).hex()
    changed["content"] = json.dumps(inside)
    with pytest.raises(ValueError, match="signature is not of the key"):
        enrolment.read_request(json.dumps(changed))


@pytest.mark.parametrize("name", ["", "../up", "a b", "-x", "x" * 65, "ü", "a\nb"])
def test_a_silo_that_is_not_a_plain_name_is_refused(name: str):
    with pytest.raises(ValueError, match="silo"):
        node(name)


def test_a_name_and_a_key_have_one_owner():
    _, first = node("north")
    _, after = admitted(first)
    _, thief = node("north")
    with pytest.raises(ValueError, match="belongs to another identity"):
        admitted(thief, after)
    asked = enrolment.read_request(first)
    clone = asked.model_copy(update={"silo": "south"})
    with pytest.raises(ValueError, match="two members have the same identity"):
        enrolment.admit(clone, after, AUTHORITY, AUTHORITY_KEY, days=30)


def test_a_revoked_silo_is_out_and_an_old_roster_does_not_bring_it_back():
    _, request = node()
    _, after = admitted(request)
    revoked = after.without("north")
    assert revoked.version == 3
    assert revoked.member("north") is None
    assert revoked.by_tls_key(after.members[0].tls_key) is None
    with pytest.raises(ValueError, match="is revoked"):
        admitted(request, revoked)
    consortium = public_bytes(CONSORTIUM)
    assert roster.verify(roster.sign(revoked, CONSORTIUM), consortium, at_least=3) == revoked
    with pytest.raises(ValueError, match="is version 2; version 3 was seen"):
        roster.verify(roster.sign(after, CONSORTIUM), consortium, at_least=3)


def renewed_request(keys: NodeKeys, number: int) -> str:
    fresh = NodeKeys(keys.identity, new_tls_key(), new_flower_key())
    return enrolment.new_request("north", fresh, number)


def test_an_older_request_does_not_bring_old_keys_back():
    keys, first = node()
    _, after = admitted(first)
    newest = renewed_request(keys, 3)
    _, renewed = admitted(newest, after)
    for old in (first, renewed_request(keys, 2), renewed_request(keys, 3)):
        with pytest.raises(ValueError, match=r"no newer than the last .*number 3.*newest request"):
            admitted(old, renewed)
    _, again = admitted(newest, renewed)  # a new certificate for the same keys
    assert again.members == renewed.members
    asked = enrolment.read_request(newest).model_copy(update={"number": 0})
    lower, _ = enrolment.admit(asked, again, AUTHORITY, AUTHORITY_KEY, days=30)
    assert lower.members[0].request == 3
    _, last = admitted(renewed_request(keys, 4), lower)
    assert last.members[0].request == 4


def test_what_was_written_before_requests_had_numbers_is_read():
    keys, request = node()
    _, after = admitted(request)
    inside = json.loads(signed.contents("enrolment request", request))
    del inside["number"]
    old = signed.seal("enrolment request", json.dumps(inside), keys.identity)
    assert enrolment.read_request(old).number == 0
    listed = json.loads(after.model_dump_json())
    del listed["members"][0]["request"]
    text = signed.seal("roster", json.dumps(listed), CONSORTIUM)
    read = roster.verify(text, public_bytes(CONSORTIUM))
    assert read.members[0].request == 0
    admitted(old, read)
    admitted(renewed_request(keys, 1), read)
    with pytest.raises(ValueError, match="no newer"):
        admitted(renewed_request(keys, 0), read)


def test_new_keys_of_the_same_identity_take_the_place_of_the_old():
    keys, request = node()
    _, after = admitted(request)
    fresh = renewed_request(keys, 2)
    _, renewed = admitted(fresh, after)
    assert len(renewed.members) == 1
    assert renewed.members[0].identity == after.members[0].identity
    assert renewed.members[0].tls_key != after.members[0].tls_key


@given(position=st.integers(0, 10**6), flip=st.integers(1, 127))
def test_any_changed_character_of_a_signed_text_is_refused(position: int, flip: int):
    text = signed.seal("roster", '{"members": "ä"}', CONSORTIUM)
    at = position % len(text)
    changed = text[:at] + chr(ord(text[at]) ^ flip) + text[at + 1 :]
    try:
        read = signed.unseal("roster", changed, public_bytes(CONSORTIUM))
    except ValueError:
        return
    # what is between the fields isn't signed, and says nothing
    assert read == '{"members": "ä"}'


@given(st.text(max_size=200))
def test_what_is_no_signed_text_is_a_plain_refusal(text: str):
    with pytest.raises(ValueError, match="is no"):
        signed.unseal("roster", text, public_bytes(CONSORTIUM))


def test_a_signature_is_good_for_one_kind_of_text_and_one_signer():
    text = signed.seal("roster", "{}", CONSORTIUM)
    assert signed.unseal("roster", text, public_bytes(CONSORTIUM)) == "{}"
    with pytest.raises(ValueError, match="is a signed roster, not a admission"):
        signed.unseal("admission", text, public_bytes(CONSORTIUM))
    with pytest.raises(ValueError, match="signature is not"):
        signed.unseal("admission", text.replace("roster", "admission"), public_bytes(CONSORTIUM))
    with pytest.raises(ValueError, match="signature is not"):
        signed.unseal("roster", text, public_bytes(new_identity()))


def test_a_roster_on_disk_is_read_with_the_pinned_key_only(tmp_path: Path):
    path = tmp_path / "roster.json"
    roster.save(EMPTY, CONSORTIUM, path)
    assert roster.load(path, public_bytes(CONSORTIUM)) == EMPTY
    with pytest.raises(InputError, match=r"roster\.json: the roster's signature"):
        roster.load(path, public_bytes(new_identity()))
    path.write_text('{"kind": "roster"}')
    with pytest.raises(InputError, match="is no signed roster"):
        roster.load(path, public_bytes(CONSORTIUM))
