"""The consortium's certificate authority: TLS certificates (X.509, RFC 5280) for both ends.

Its certificates say who may talk; what they may do is decided by the roster. A node makes its key
and asks by a signing request (PKCS 10), so that a private key never travels.
"""

import datetime
import ipaddress
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 397
# a clock that is a little behind must not find a new certificate not yet valid
_BACKDATED = datetime.timedelta(hours=1)


def new_authority(
    key: ec.EllipticCurvePrivateKey, name: str, *, days: int = AUTHORITY_DAYS
) -> x509.Certificate:
    """A self-signed authority that may sign leaves and no further authority."""
    subject = _name(f"{name} authority")
    builder = _builder(subject, subject, key.public_key(), days)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(authority=True), critical=True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return builder.add_extension(identifier, critical=False).sign(key, hashes.SHA256())


def server_certificate(
    key: ec.EllipticCurvePrivateKey,
    hosts: Sequence[str],
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    *,
    days: int = CERTIFICATE_DAYS,
) -> x509.Certificate:
    """The coordinator's certificate, for the names and addresses by which silos reach it."""
    builder = _builder(_name(hosts[0]), authority.subject, key.public_key(), days)
    builder = _leaf(builder, authority_key, ExtendedKeyUsageOID.SERVER_AUTH)
    names = x509.SubjectAlternativeName([_alternative(host) for host in hosts])
    return builder.add_extension(names, critical=False).sign(authority_key, hashes.SHA256())


def self_signed(
    key: ec.EllipticCurvePrivateKey, hosts: Sequence[str], *, days: int = CERTIFICATE_DAYS
) -> x509.Certificate:
    """A certificate that vouches for itself: for one machine's talk with itself."""
    subject = _name(hosts[0])
    builder = _builder(subject, subject, key.public_key(), days)
    builder = _leaf(builder, key, ExtendedKeyUsageOID.SERVER_AUTH)
    names = x509.SubjectAlternativeName([_alternative(host) for host in hosts])
    return builder.add_extension(names, critical=False).sign(key, hashes.SHA256())


def signing_request(key: ec.EllipticCurvePrivateKey, silo: str) -> x509.CertificateSigningRequest:
    """A silo's request for a client certificate in its name, signed with the certificate's key."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(silo))
    return builder.sign(key, hashes.SHA256())


def client_certificate(
    request: x509.CertificateSigningRequest,
    silo: str,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    *,
    days: int = CERTIFICATE_DAYS,
) -> x509.Certificate:
    """The certificate of a silo. Of the request only the key is taken, and only if it signed it.

    Raises ValueError on a wrong signature or a key that is not of curve P-256.
    """
    key = request.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise ValueError("the certificate's key is not of curve P-256")
    if not request.is_signature_valid:
        raise ValueError("the signing request was not signed with its own key")
    builder = _builder(_name(silo), authority.subject, key, days)
    builder = _leaf(builder, authority_key, ExtendedKeyUsageOID.CLIENT_AUTH)
    return builder.sign(authority_key, hashes.SHA256())


def pem(certificate: x509.Certificate) -> str:
    """The certificate as text."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def key_digest(certificate: x509.Certificate) -> str:
    """SHA-256, in hex, of the certificate's public key: what the roster pins.

    It stays when a certificate is renewed for the same key.
    """
    content = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    digest = hashes.Hash(hashes.SHA256())
    digest.update(content)
    return digest.finalize().hex()


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _leaf(
    builder: x509.CertificateBuilder,
    authority_key: ec.EllipticCurvePrivateKey,
    use: x509.ObjectIdentifier,
) -> x509.CertificateBuilder:
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        .add_extension(identifier, critical=False)
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
