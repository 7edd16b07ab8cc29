"""What pictures are signed with: a chain of certificates and a private key, read from two PEM files and checked.

Everything that C2PA asks of a certificate is told here before anything is written, one problem at a time, so that
nobody has to read the messages of a signing library. The key is held by this process alone: it is not shown, and not
sent to other processes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from consistory_ray.errors import InputError, Problem

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

FIELD = "--c2pa"
INSTALL = 'pip install "consistory-ray[sign]"'
PURPOSES = {
    "1.3.6.1.4.1.62558.2.1": "C2PA claim signing",
    "1.3.6.1.5.5.7.3.4": "e-mail protection (S/MIME)",
    "1.3.6.1.5.5.7.3.36": "document signing",
}
"""Extended key usages that a certificate may have to sign pictures, as object identifiers."""
_ANY_PURPOSE = "2.5.29.37.0"
_MAX_BYTES = 1 << 20
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_MIN_RSA_BITS = 2048


@dataclass(frozen=True)
class Credentials:
    """Certificates and key that belong together.

    Attributes:
        chain: PEM, the signer's certificate first.
        algorithm: ``ES256``, ``ES384``, ``ES512``, ``PS256`` or ``ED25519``, as the key is.
        holder: whom the certificate names.
        until: when it expires.
        key: PEM, PKCS #8, not encrypted.
    """

    chain: bytes
    algorithm: str
    holder: str
    until: datetime
    key: bytes = field(repr=False)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private key is not sent to other processes")

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that say which certificates these are; the key has no part in them."""
        return hashlib.sha256(self.chain).hexdigest()[:16]


def read_credentials(certificate: Path, key: Path, now: datetime | None = None) -> Credentials:
    """Read and check both files.

    Args:
        certificate: PEM, the signer's certificate first and those that issued it after it; the root may be left out.
        key: PEM, of that certificate; not encrypted.
        now: instead of the clock's time.

    Raises:
        InputError: they cannot be read, do not belong together, have expired, or are not for signing pictures.
    """
    try:
        from cryptography import x509
    except ImportError:
        raise _problem("the extra sign is not installed", INSTALL) from None
    data = _read(certificate, "a file with the certificates")
    if b"PRIVATE KEY-----" in data and b"BEGIN CERTIFICATE" not in data:
        raise _problem(f"{certificate} holds a key", "give the certificates first, then the key")
    try:
        chain = x509.load_pem_x509_certificates(data)
    except ValueError as error:
        fix = "give certificates as PEM, the signer's first (openssl x509 -inform der converts DER)"
        raise _problem(f"{certificate}: no certificates in it that can be read", fix) from error
    own = chain[0]
    loaded = _load_key(key)
    _refuse_other_key(own, loaded, certificate, key)
    _refuse_unfit(own, certificate)
    _refuse_outdated(chain, certificate, now or datetime.now(timezone.utc))
    return Credentials(
        b"".join(_pem(one) for one in chain),
        _algorithm(loaded, key),
        own.subject.rfc4514_string(),
        own.not_valid_after_utc,
        _as_pkcs8(loaded),
    )


def _read(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise _problem(f"{path} ({error.strerror or error})", f"give {what} that can be read") from error
    if len(data) > _MAX_BYTES:
        raise _problem(f"{path} is larger than {_MAX_BYTES} bytes", f"give {what}, PEM")
    return data


def _load_key(path: Path) -> Any:
    """The private key; nothing of what is in the file is told."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _read(path, "a file with the private key")
    decrypt = "give one that is not: openssl pkey -in KEY.pem -out PLAIN.pem"
    if b"BEGIN CERTIFICATE" in data and b"PRIVATE KEY-----" not in data:
        raise _problem(f"{path} holds certificates", "give the certificates first, then the key")
    try:
        return load_pem_private_key(data, password=None)
    except TypeError:
        raise _problem(f"{path} is encrypted", decrypt) from None
    except (ValueError, UnsupportedAlgorithm):
        raise _problem(f"{path}: no private key in it that can be read", "give a private key as PEM") from None


def _refuse_other_key(own: Certificate, key: Any, certificate: Path, path: Path) -> None:
    if _public(own.public_key()) != _public(key.public_key()):
        fix = f"give the key that {certificate} was issued for; its first certificate must be the signer's"
        raise _problem(f"{path} is the key of another certificate", fix)


def _refuse_unfit(own: Certificate, certificate: Path) -> None:
    """Refuse what validators would not take as a signer of pictures (C2PA specification, certificate profile)."""
    from cryptography import x509

    fix = f"have one issued for {' or '.join(PURPOSES.values())}"
    basic = _extension(own, x509.BasicConstraints)
    if basic is not None and basic.ca:
        raise _problem(f"{certificate}: the first certificate is an authority's", "put the signer's first, and its key")
    if own.subject == own.issuer:
        raise _problem(f"{certificate} is signed by itself", "have it issued by an authority, which may be your own")
    usage = _extension(own, x509.KeyUsage)
    if usage is None or not usage.digital_signature:
        raise _problem(f"{certificate} is not for digital signatures", fix)
    extended = _extension(own, x509.ExtendedKeyUsage)
    purposes = {one.dotted_string for one in extended or ()}
    if _ANY_PURPOSE in purposes or not purposes & set(PURPOSES):
        raise _problem(f"{certificate} is not for signing pictures", fix)


def _refuse_outdated(chain: list[Certificate], certificate: Path, now: datetime) -> None:
    for one in chain:
        whose = f"{certificate}: that of {one.subject.rfc4514_string()}"
        if now > one.not_valid_after_utc:
            raise _problem(f"{whose} expired on {one.not_valid_after_utc:%Y-%m-%d %H:%M} UTC", "renew it")
        if now < one.not_valid_before_utc:
            fix = "wait, or look whether the clock of this machine is right"
            raise _problem(f"{whose} is not valid before {one.not_valid_before_utc:%Y-%m-%d %H:%M} UTC", fix)


def _algorithm(key: Any, path: Path) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    fix = f"use an EC key (P-256, P-384, P-521), Ed25519, or RSA of {_MIN_RSA_BITS} bits or more"
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        return _CURVES[key.curve.name]
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= _MIN_RSA_BITS:
        return "PS256"
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ED25519"
    raise _problem(f"{path} is a key of a kind that pictures are not signed with", fix)


def _extension(certificate: Certificate, kind: type) -> Any:
    from cryptography.x509 import ExtensionNotFound

    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except ExtensionNotFound:
        return None


def _pem(certificate: Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _public(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    data: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return data


def _as_pkcs8(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    data: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return data


def _problem(value: str, fix: str) -> InputError:
    return InputError("pictures cannot be signed", [Problem(FIELD, value, fix)])
