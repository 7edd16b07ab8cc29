"""Pictures are signed with certificates of an authority of the tests' own, and read back by c2pa's reader."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import statistics
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from PIL import Image

from consistory_ray.errors import AssetError, InputError
from consistory_ray.export.credentials import Credentials, read_credentials
from consistory_ray.export.signing import UNTRUSTED, Claim, PictureSigner, shown_model, validate
from consistory_ray.pictures.provenance import PACKET, TRAINED, marked, source_type
from tests.export.authority import CLAIM_SIGNING, DAY, NOW, Authority, key_pem, pem

c2pa = pytest.importorskip("c2pa")
CLAIM = Claim("moss-dragon/in-space.png", "a" * 32, "miniature", "f" * 64, "a drawing of a dragon in space")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def signer(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> PictureSigner:
    return PictureSigner(read_credentials(*authority.files(tmp_path_factory.mktemp("keys"))))


def picture(ending: str, side: int = 64) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8)
    file = io.BytesIO()
    if ending == "png":
        Image.fromarray(pixels).save(file, "PNG", compress_level=1)
        return marked(file.getvalue())
    Image.fromarray(pixels).save(file, "WEBP", lossless=True, xmp=PACKET.encode())
    return file.getvalue()


def pixels(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as image:
        return image.tobytes()


@pytest.mark.parametrize("ending", ["png", "webp"])
def test_a_signed_picture_is_valid_and_trusted_by_whoever_trusts_the_authority(
    ending: Any, signer: PictureSigner, authority: Authority
) -> None:
    plain = picture(ending)
    signed = signer.sign(plain, ending, CLAIM)
    assert pixels(signed) == pixels(plain) and source_type(signed) == TRAINED
    stranger, friend = validate(signed, ending), validate(signed, ending, pem(authority.certificate))
    assert (stranger.state, stranger.failures) == ("Valid", (UNTRUSTED,))
    assert (friend.state, friend.failures) == ("Trusted", ())
    with c2pa.Reader(f"image/{ending}", io.BytesIO(signed)) as reader:  # as anybody reads it, with no settings of ours
        assert reader.get_validation_state() == "Valid"
    assert 2_000 < len(signed) - len(plain) < 6_000, "no thumbnail"
    assert signer.sign(plain, ending, CLAIM) != signed, "two signatures differ"
    again = validate(signer.sign(plain, ending, CLAIM), ending)
    assert again.state == "Valid"


def test_what_is_said(signer: PictureSigner) -> None:
    told = validate(signer.sign(picture("png"), "png", CLAIM), "png").manifest
    (generator,) = told["claim_generator_info"]
    assert generator["name"] == "consistory_ray" and told["title"] == CLAIM.title
    said = {one["label"].removesuffix(".v2"): one["data"] for one in told["assertions"]}
    (action,) = said["c2pa.actions"]["actions"]
    assert (action["action"], action["digitalSourceType"]) == ("c2pa.created", TRAINED)
    assert action["softwareAgent"] == {"name": "miniature", "version": "f" * 64}
    fields = said["cawg.metadata"]
    assert fields["Iptc4xmpExt:AIPromptInformation"] == CLAIM.prompt and fields["dc:identifier"] == CLAIM.asset_id
    assert fields["Iptc4xmpExt:AISystemVersionUsed"] == "f" * 64
    silent = Claim(CLAIM.title, CLAIM.asset_id, "models/secret/of-mine.safetensors", "", None)
    other = json.dumps(dict(validate(signer.sign(picture("png"), "png", silent), "png").manifest))
    assert "drawing" not in other and "AIPrompt" not in other and "thumbnail" not in other
    assert "secret" not in other and "of-mine.safetensors" in other


@pytest.mark.parametrize("ending", ["png", "webp"])
def test_a_changed_pixel_is_told(ending: Any, signer: PictureSigner, authority: Authority) -> None:
    signed = signer.sign(picture(ending), ending, CLAIM)
    place = signed.index(b"IDAT" if ending == "png" else b"VP8L") + 200
    changed = signed[:place] + bytes([signed[place] ^ 1]) + signed[place + 1 :]
    found = validate(changed, ending, pem(authority.certificate))
    assert found.state == "Invalid" and "assertion.dataHash.mismatch" in found.failures


def test_a_picture_without_credentials_has_none_to_read(signer: PictureSigner) -> None:
    with pytest.raises(AssetError, match="no credentials"):
        validate(picture("png"), "png")
    with pytest.raises(AssetError, match=r"a\.png cannot be signed"):
        signer.sign(b"nothing", "png", Claim("a.png", "x", "miniature", ""))


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP521R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(public_exponent=65537, key_size=2048),
    ],
    ids=["ES384", "ES512", "ED25519", "PS256"],
)
def test_every_kind_of_key(key: Any, authority: Authority, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    read = read_credentials(*authority.files(tmp_path, key))
    assert read.algorithm in request.node.name
    signed = PictureSigner(read).sign(picture("png"), "png", CLAIM)
    assert validate(signed, "png", pem(authority.certificate)).state == "Trusted"


@pytest.mark.parametrize("purpose", [CLAIM_SIGNING, ExtendedKeyUsageOID.EMAIL_PROTECTION])
def test_purposes_that_c2pa_names(purpose: Any, authority: Authority, tmp_path: Path) -> None:
    signer = PictureSigner(read_credentials(*authority.files(tmp_path, purpose=purpose)))
    signed = signer.sign(picture("png"), "png", CLAIM)
    assert validate(signed, "png", pem(authority.certificate)).state == "Trusted"


def test_an_old_form_of_key_is_taken(authority: Authority, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate, private = authority.files(tmp_path, key)
    private.write_bytes(key_pem(key, form=PrivateFormat.TraditionalOpenSSL))
    assert b"EC PRIVATE KEY" in private.read_bytes()
    assert PictureSigner(read_credentials(certificate, private))


def refused(certificate: Path, key: Path) -> str:
    with pytest.raises(InputError) as caught:
        PictureSigner(read_credentials(certificate, key))
    (problem,) = caught.value.problems
    assert problem.path == "--c2pa" and problem.fix
    return problem.value


def test_files_that_are_no_certificates_or_keys(authority: Authority, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate, private = authority.files(tmp_path, key)
    assert "No such file" in refused(tmp_path / "none.pem", private)
    assert "none.pem" in refused(certificate, tmp_path / "none.pem")
    assert "holds a key" in refused(private, certificate), "the wrong way round"
    assert "holds certificates" in refused(certificate, certificate)
    assert "Is a directory" in refused(certificate, tmp_path)
    binary = tmp_path / "cert.der"
    binary.write_bytes(authority.certificate.public_bytes(Encoding.DER))
    assert "no certificates in it" in refused(binary, private)
    (tmp_path / "other.pem").write_bytes(key_pem(ec.generate_private_key(ec.SECP256R1())))
    assert "key of another certificate" in refused(certificate, tmp_path / "other.pem")
    (tmp_path / "locked.pem").write_bytes(key_pem(key, b"hunter2"))
    assert "is encrypted" in refused(certificate, tmp_path / "locked.pem")
    cut = private.read_bytes().replace(b"MIG", b"XXX")
    (tmp_path / "cut.pem").write_bytes(cut)
    assert "no private key in it" in refused(certificate, tmp_path / "cut.pem")
    (tmp_path / "long.pem").write_bytes(bytes(2 << 20))
    assert "larger than" in refused(tmp_path / "long.pem", private)


def test_certificates_that_are_not_for_it(authority: Authority, tmp_path: Path) -> None:
    assert "expired on" in refused(*authority.files(tmp_path, since=NOW - 9 * DAY, until=NOW - DAY))
    assert "not valid before" in refused(*authority.files(tmp_path, since=NOW + DAY))
    assert "not for signing pictures" in refused(*authority.files(tmp_path, purpose=ExtendedKeyUsageOID.SERVER_AUTH))
    any_purpose = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE
    assert "not for signing pictures" in refused(*authority.files(tmp_path, purpose=any_purpose))
    assert "not for signing pictures" in refused(*authority.files(tmp_path, purpose=None))
    assert "not for digital signatures" in refused(*authority.files(tmp_path, signs=False))
    small = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    assert "of a kind" in refused(*authority.files(tmp_path, small))
    certificate, private = tmp_path / "ca.pem", tmp_path / "ca-key.pem"
    certificate.write_bytes(pem(authority.certificate))
    private.write_bytes(key_pem(authority.key))
    assert "an authority's" in refused(certificate, private)


def test_the_key_is_not_shown_and_does_not_travel(authority: Authority, tmp_path: Path) -> None:
    read = read_credentials(*authority.files(tmp_path))
    secret = read.key.splitlines()[1].decode()
    signer = PictureSigner(read)
    assert secret not in repr(read) and secret not in str(vars(signer)) and secret not in str(signer.depends_on())
    for one in (read, signer):
        with pytest.raises(TypeError, match="private key"):
            pickle.dumps(one)
    again = PictureSigner(read_credentials(tmp_path / "cert.pem", tmp_path / "key.pem"))
    assert again.depends_on() == signer.depends_on(), "the same certificates"


@pytest.mark.parametrize("address", ["ftp://stamps", "no address", "http://127.0.0.1:9/none"])
def test_an_authority_that_stamps_no_times_is_told_before_anything(address: str, signer: PictureSigner) -> None:
    with pytest.raises(InputError) as caught:
        PictureSigner(signer._credentials, address)
    (problem,) = caught.value.problems
    assert problem.path == "--c2pa-tsa" and address in problem.value


def test_models_as_strangers_read_them() -> None:
    assert shown_model("stabilityai/stable-diffusion-xl-base-1.0") == "stabilityai/stable-diffusion-xl-base-1.0"
    assert shown_model("s3://bucket/private/mine.safetensors?versionId=7") == "mine.safetensors"
    assert shown_model("models/of/mine/") == "mine" and shown_model("/") == "a model"


@pytest.mark.parametrize("side", [128, 1024])
@pytest.mark.parametrize(
    "key",
    [ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(public_exponent=65537, key_size=2048)],
    ids=["P-256", "RSA"],
)
def test_signing_takes_little(key: Any, side: int, authority: Authority, tmp_path: Path) -> None:
    """Milliseconds (median of 30) and bytes of a picture, shown by ``pytest -s``; the documentation names them."""
    signer, data, times = PictureSigner(read_credentials(*authority.files(tmp_path, key))), picture("png", side), []
    for _ in range(30):
        started = time.perf_counter()
        signed = signer.sign(data, "png", CLAIM)
        times.append(time.perf_counter() - started)
    milliseconds, more = 1000 * statistics.median(times), len(signed) - len(data)
    print(f"\n{type(key).__name__}, {side} px: {milliseconds:.1f} ms, {more} bytes more")
    assert milliseconds < 2_000 and more < 6_000


def test_credentials_are_as_documented(authority: Authority, tmp_path: Path) -> None:
    read = read_credentials(*authority.files(tmp_path))
    assert isinstance(read, Credentials) and read.algorithm == "ES256"
    assert read.holder == "CN=Signer,O=House" and len(read.digest) == 16 and read.until > NOW
    assert read_credentials(tmp_path / "cert.pem", tmp_path / "key.pem", now=NOW + 5 * DAY)
    with pytest.raises(InputError, match="expired"):
        read_credentials(tmp_path / "cert.pem", tmp_path / "key.pem", now=NOW + 20 * DAY)


class _Stamps(BaseHTTPRequestHandler):
    """A time stamp authority: openssl's, behind HTTP."""

    folder: Path

    def do_POST(self) -> None:
        (self.folder / "query").write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
        command = "openssl ts -reply -config tsa.cnf -queryfile query -signer cert.pem -inkey key.pem -out reply"
        subprocess.run(command.split(), cwd=self.folder, check=True, capture_output=True)
        reply = (self.folder / "reply").read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", "application/timestamp-reply")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is the time stamp authority")
def test_a_time_stamp_is_of_when_it_was_signed(authority: Authority, tmp_path: Path) -> None:
    (stamps := tmp_path / "stamps").mkdir()
    authority.files(stamps, purpose=ExtendedKeyUsageOID.TIME_STAMPING)
    rules = (
        "serial=serial default_policy=1.2.3.4 digests=sha256,sha384,sha512 signer_digest=sha256 ess_cert_id_alg=sha256"
    )
    (stamps / "tsa.cnf").write_text("[tsa]\ndefault_tsa=own\n[own]\n" + rules.replace(" ", "\n") + "\n")
    (stamps / "serial").write_text("01")
    handler = type("Stamps", (_Stamps,), {"folder": stamps})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        credentials = read_credentials(*authority.files(tmp_path))
        signer = PictureSigner(credentials, f"http://127.0.0.1:{server.server_port}/")
        found = validate(signer.sign(picture("png"), "png", CLAIM), "png", pem(authority.certificate))
        server.shutdown()
    assert found.state == "Trusted"
    assert found.manifest["signature_info"]["time"][:10] in {f"{NOW:%Y-%m-%d}", f"{NOW + DAY:%Y-%m-%d}"}
    plain = validate(PictureSigner(credentials).sign(picture("png"), "png", CLAIM), "png")
    assert "time" not in plain.manifest["signature_info"]
