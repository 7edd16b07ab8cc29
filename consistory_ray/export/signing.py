"""Content Credentials: exported pictures are signed after C2PA, by ``c2pa-python``, with the user's own certificate.

A signed file says, so that any change of it shows: this program made it (claim generator), with a model (action
``c2pa.created``, IPTC's trainedAlgorithmicMedia, the model as software agent), and IPTC's fields on AI (model,
fingerprint of its weights, on request the prompt) with the asset's id. It holds no thumbnail, which would be a third as
large again as many a picture. Two signatures of the same file differ in random numbers and, with a time stamp, in time:
whoever compares files compares the unsigned ones.

Signing computes on this machine; only a time stamp asks its authority, for every picture.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from PIL import Image

from consistory_ray.errors import AssetError, InputError, Problem
from consistory_ray.export.credentials import FIELD, INSTALL, PURPOSES, Credentials
from consistory_ray.guards.redaction import redacted
from consistory_ray.jobs.model_names import is_hub_id
from consistory_ray.pictures.provenance import IPTC_EXTENSION, TRAINED
from consistory_ray.settings import BUNDLED_MODEL

Ending = Literal["png", "webp"]
UNTRUSTED = "signingCredential.untrusted"
"""What a reader says of a certificate whose authority it has not been told to trust."""
_DUBLIN_CORE = "http://purl.org/dc/elements/1.1/"


@dataclass(frozen=True, slots=True)
class Claim:
    """What is said of one picture.

    Attributes:
        title: the name of its file.
        asset_id: of the picture in its output; empty for what is of several.
        model, fingerprint: what made it, and of its weights; see
            :class:`consistory_ray.output.index.rows.IndexRow`.
        prompt: None where it is not to be told.
    """

    title: str
    asset_id: str
    model: str
    fingerprint: str
    prompt: str | None = None

    def manifest(self, version: str) -> dict[str, Any]:
        """The definition that a C2PA builder takes; ``version`` is this package's."""
        model = shown_model(self.model)
        agent = {"name": model, **({"version": self.fingerprint} if self.fingerprint else {})}
        created = {"action": "c2pa.created", "digitalSourceType": TRAINED, "softwareAgent": agent}
        told = {
            "dc:identifier": self.asset_id,
            "Iptc4xmpExt:DigitalSourceType": TRAINED,
            "Iptc4xmpExt:AISystemUsed": model,
            "Iptc4xmpExt:AISystemVersionUsed": self.fingerprint,
            "Iptc4xmpExt:AIPromptInformation": self.prompt,
        }
        fields = {name: value for name, value in told.items() if value}
        context = {"dc": _DUBLIN_CORE, "Iptc4xmpExt": IPTC_EXTENSION}
        return {
            "claim_generator_info": [{"name": "consistory_ray", "version": version}],
            "title": self.title,
            "assertions": [
                {"label": "c2pa.actions", "data": {"actions": [created]}},
                {"label": "cawg.metadata", "data": {"@context": context, **fields}},
            ],
        }


@dataclass(frozen=True, slots=True)
class Validation:
    """What a reader finds in a signed picture.

    Attributes:
        state: ``Trusted``; ``Valid``, unchanged since it was signed, by somebody whom the reader does not know; or
            ``Invalid``.
        failures: codes of the C2PA specification, such as :data:`UNTRUSTED` or ``assertion.dataHash.mismatch``.
        manifest: what was signed.
    """

    state: str
    failures: tuple[str, ...]
    manifest: Mapping[str, Any] = field(repr=False)


class PictureSigner:
    """Signs pictures. It can be used from several threads, and is not sent to other processes.

    Args:
        credentials: with which.
        timestamps: address of a time stamp authority (RFC 3161), which is asked for every picture; None for none.

    Raises:
        InputError: a picture that is signed with them is not valid, ``c2pa-python`` is not installed, or the authority
            does not answer.
    """

    def __init__(self, credentials: Credentials, timestamps: str | None = None) -> None:
        from consistory_ray import __version__

        self._credentials, self._version = credentials, __version__
        self._timestamps: str | None = None
        self._try(
            "--c2pa", credentials.holder, "have a certificate issued as docs/assets.md says, with its whole chain"
        )
        if timestamps is not None:
            if urlsplit(timestamps).scheme not in ("http", "https") or not urlsplit(timestamps).hostname:
                fix = "give the http(s) address of a time stamp authority (RFC 3161)"
                raise InputError("pictures cannot be signed", [Problem("--c2pa-tsa", redacted(timestamps), fix)])
            self._timestamps = timestamps
            self._try("--c2pa-tsa", redacted(timestamps), "give the address of a time stamp authority that answers")

    def sign(self, data: bytes, ending: Ending, claim: Claim) -> bytes:
        """A picture file with its Content Credentials.

        Args:
            data: a whole PNG or WebP file.
            ending: which of both.
            claim: what is said of it.

        Raises:
            AssetError: it could not be signed.
        """
        c2pa = _c2pa()
        signed = io.BytesIO()
        try:
            with c2pa.Context.from_dict(_settings()) as context, self._signer(c2pa) as signer:
                builder = c2pa.Builder(claim.manifest(self._version), context)
                with builder:
                    builder.sign(signer, f"image/{ending}", io.BytesIO(data), signed)
        except c2pa.C2paError as error:
            raise AssetError(f"{claim.title} cannot be signed: {redacted(str(error))}") from error
        return signed.getvalue()

    def depends_on(self) -> dict[str, str]:
        """What decides how its signatures look, JSON-ready, without secrets."""
        return {"certificates": self._credentials.digest, "timestamps": redacted(self._timestamps or "")}

    def _signer(self, c2pa: Any) -> Any:
        asked = c2pa.C2paSignerInfo(
            alg=getattr(c2pa.C2paSigningAlg, self._credentials.algorithm),
            sign_cert=self._credentials.chain,
            private_key=self._credentials.key,
            ta_url=None if self._timestamps is None else self._timestamps.encode(),
        )
        return c2pa.Signer.from_info(asked)

    def _try(self, option: str, value: str, fix: str) -> None:
        """Sign a picture of eight pixels and read it back, before others depend on it."""
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "PNG")
        try:
            found = validate(self.sign(file.getvalue(), "png", Claim("trial.png", "trial", "none", "")), "png")
        except AssetError as error:
            reason = str(error).removeprefix("trial.png cannot be signed: ")
            raise InputError("pictures cannot be signed", [Problem(option, f"{value}: {reason}", fix)]) from error
        if found.state not in ("Valid", "Trusted"):
            said = f"{value}: {', '.join(found.failures)}"
            raise InputError("pictures cannot be signed", [Problem(option, said, fix)])


def validate(data: bytes, ending: Ending, anchors: bytes | None = None) -> Validation:
    """Read the Content Credentials of a picture. Nothing is fetched.

    Args:
        data: a whole PNG or WebP file.
        ending: which of both.
        anchors: certificates of authorities that are trusted, PEM; None for none.

    Raises:
        AssetError: there are no credentials in it, or they cannot be read.
    """
    c2pa = _c2pa()
    try:
        with (
            c2pa.Context.from_dict(_settings(anchors)) as context,
            c2pa.Reader(f"image/{ending}", io.BytesIO(data), context=context) as reader,
        ):
            results = (reader.get_validation_results() or {}).get("activeManifest") or {}
            failures = tuple(one["code"] for one in results.get("failure") or ())
            return Validation(reader.get_validation_state() or "Invalid", failures, reader.get_active_manifest() or {})
    except c2pa.C2paError as error:
        raise AssetError(f"no credentials can be read: {error}") from error


def shown_model(model: str) -> str:
    """A model as strangers may read it: of a path or URL only the last part."""
    if model == BUNDLED_MODEL or is_hub_id(model):
        return model
    return model.split("?")[0].rstrip("/").replace("\\", "/").rpartition("/")[2] or "a model"


def _settings(anchors: bytes | None = None) -> dict[str, Any]:
    purposes = "".join(f"{purpose}\n" for purpose in PURPOSES)  # all, where c2pa's own list lacks that of C2PA
    trusted = {} if anchors is None else {"trust_anchors": anchors.decode()}
    return {
        "builder": {"thumbnail": {"enabled": False}},
        "trust": {"trust_config": purposes, **trusted},
        "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
    }


def _c2pa() -> Any:
    try:
        import c2pa  # type: ignore[import-untyped]
    except ImportError:
        value = "the extra sign is not installed"
        raise InputError("pictures cannot be signed", [Problem(FIELD, value, INSTALL)]) from None
    return c2pa
