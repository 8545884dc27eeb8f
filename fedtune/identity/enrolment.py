"""How a silo joins: its request, which its identity signs, and the consortium's answer.

Both are small files that people carry. What makes them trustworthy are two fingerprints that
people compare by another way: the coordinator's operator that of the silo's identity, the silo
that of the consortium.
"""

from typing import Annotated

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_ssh_public_key
from pydantic import Field, TypeAdapter, ValidationError

from fedtune.config.section import Section
from fedtune.identity.certificates import client_certificate, key_digest, signing_request
from fedtune.identity.keys import NodeKeys, public_bytes, same_fingerprint, ssh_public
from fedtune.identity.roster import Hex32, Member, RequestNumber, Roster, SiloName, verify
from fedtune.identity.signed import contents, seal, unseal

_REQUEST, _ADMISSION = "enrolment request", "admission"
_Text = Annotated[str, Field(max_length=100_000)]


class Request(Section):
    """What a silo asks with: public keys only, and a signing request for its certificate."""

    silo: SiloName
    identity: Hex32
    flower_key: Annotated[str, Field(max_length=1000)]
    tls_request: _Text
    number: RequestNumber = 0


class Admission(Section):
    """What a silo needs to join. `roster` is the signed roster that it is in."""

    federation: Annotated[str, Field(min_length=1, max_length=200)]
    silo: SiloName
    coordinator: Annotated[str, Field(pattern=r"^\S+:\d{1,5}$")] = Field(
        description="host:port by which the coordinator is reached."
    )
    consortium: Hex32
    authority: _Text = Field(description="The certificate by which the coordinator is known.")
    certificate: _Text = Field(description="The silo's own.")
    roster: str


def new_request(silo: str, keys: NodeKeys, number: int) -> str:
    """A silo's request as signed text; `number` is higher than that of its request before.

    Raises ValueError on a name that can't be used.
    """
    try:
        TypeAdapter(SiloName).validate_python(silo)
    except ValidationError:
        raise ValueError(f"`{silo}` can't be a silo's name: want letters, digits, `._-`") from None
    asked = Request(
        silo=silo,
        identity=public_bytes(keys.identity).hex(),
        flower_key=ssh_public(keys.flower),
        tls_request=signing_request(keys.tls, silo).public_bytes(Encoding.PEM).decode(),
        number=number,
    )
    return seal(_REQUEST, asked.model_dump_json(), keys.identity)


def read_request(text: str) -> Request:
    """The request in an untrusted `text`, signed by the identity that it names.

    Raises ValueError on anything else, on a Flower key that is not of curve P-384 and on a
    signing request that was not signed with its own key.
    """
    try:
        asked = Request.model_validate_json(contents(_REQUEST, text))
    except ValidationError as error:
        raise ValueError(_first(_REQUEST, error)) from None
    unseal(_REQUEST, text, bytes.fromhex(asked.identity))
    _check_flower_key(asked.flower_key)
    _csr(asked)
    return asked


def admit(
    asked: Request,
    roster: Roster,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    *,
    days: int,
) -> tuple[Roster, x509.Certificate]:
    """The roster's next version, with the silo in it, and the silo's certificate.

    A silo that is there already gets new keys or a new certificate for the old ones. Raises
    ValueError as `Roster.with_member`.
    """
    certificate = client_certificate(_csr(asked), asked.silo, authority, authority_key, days=days)
    member = Member(
        silo=asked.silo,
        identity=asked.identity,
        tls_key=key_digest(certificate),
        flower_key=asked.flower_key,
        request=asked.number,
    )
    return roster.with_member(member), certificate


def sign_admission(admission: Admission, consortium: Ed25519PrivateKey) -> str:
    """The admission as text that the consortium has signed."""
    return seal(_ADMISSION, admission.model_dump_json(), consortium)


def read_admission(text: str, pinned: str, silo: str, keys: NodeKeys) -> tuple[Admission, Roster]:
    """The admission in an untrusted `text`, and its roster.

    `pinned` is the consortium's fingerprint as its people told it, `keys` are the node's own.
    Raises ValueError unless the consortium with that fingerprint signed it, for this silo and for
    these very keys.
    """
    try:
        given = Admission.model_validate_json(contents(_ADMISSION, text))
    except ValidationError as error:
        raise ValueError(_first(_ADMISSION, error)) from None
    consortium = bytes.fromhex(given.consortium)
    if not same_fingerprint(pinned, consortium):
        raise ValueError("is of a consortium with another fingerprint than the one given")
    unseal(_ADMISSION, text, consortium)
    roster = verify(given.roster, consortium)
    if given.silo != silo:
        raise ValueError(f"is for the silo `{given.silo}`, this is `{silo}`")
    _check_ours(given, roster, keys)
    return given, roster


def _check_ours(given: Admission, roster: Roster, keys: NodeKeys) -> None:
    member = roster.member(given.silo)
    if member is None or roster.federation != given.federation:
        raise ValueError("its roster is of another federation, or this silo is not in it")
    certificate = x509.load_pem_x509_certificate(given.certificate.encode())
    ours = (
        member.identity == public_bytes(keys.identity).hex(),
        member.flower_key == ssh_public(keys.flower),
        member.tls_key == key_digest(certificate),
        certificate.public_key() == keys.tls.public_key(),
    )
    if not all(ours):
        raise ValueError("is for other keys than this node's: send its request once more")


def _csr(asked: Request) -> x509.CertificateSigningRequest:
    try:
        return x509.load_pem_x509_csr(asked.tls_request.encode())
    except ValueError:
        raise ValueError("the request for a certificate is damaged") from None


def _check_flower_key(line: str) -> None:
    try:
        key = load_ssh_public_key(line.encode())
    except Exception:
        raise ValueError("the Flower key is not a public key in OpenSSH's format") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise ValueError("the Flower key is not of curve P-384")


def _first(kind: str, error: ValidationError) -> str:
    told = error.errors()[0]
    return f"is no {kind}: {'.'.join(map(str, told['loc']))}: {told['msg']}"
