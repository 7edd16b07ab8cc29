"""Decoding what users give: every format and mode that is taken, and one error each for what is not."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from numpy.typing import NDArray
from PIL import Image, ImageCms

from consistory_ray.errors import InputError
from consistory_ray.pictures import MAX_PIXELS, Picture, open_picture, read_header
from consistory_ray.pictures.opening import WORKING_PIXELS
from tests.pictures.making import disc, encoded, gradient, ink_profile, png_header

ROOT = Path(__file__).parents[2]
WHOLE = gradient()


def pixels(image: Image.Image | Picture) -> NDArray[np.int64]:
    shown = image.image if isinstance(image, Picture) else image
    assert shown.mode == "RGB"
    return np.asarray(shown).astype(np.int64)


def far(one: Image.Image | Picture, other: Image.Image | Picture) -> float:
    """The mean difference of two pictures' pixels."""
    return float(np.abs(pixels(one) - pixels(other)).mean())


def refused(data: bytes) -> tuple[str, str]:
    """Value and fix of the one problem with a file."""
    with pytest.raises(InputError) as caught:
        open_picture(data, "subjects[0].pictures[1].image")
    (problem,) = caught.value.problems
    assert problem.path == "subjects[0].pictures[1].image"
    assert problem.value.isprintable() and problem.fix
    return problem.value, problem.fix


def grey_of(image: Image.Image) -> Image.Image:
    return image.convert("L").convert("RGB")


def opaque_disc() -> Image.Image:
    image = WHOLE.copy()
    image.putalpha(Image.fromarray(disc().astype(np.uint8) * 255))
    return image


@pytest.mark.parametrize(
    ("data", "expected", "tolerance"),
    [
        (encoded(WHOLE), WHOLE, 0),
        (encoded(WHOLE, compress_level=9, optimize=True), WHOLE, 0),
        (encoded(WHOLE, "JPEG", quality=95), WHOLE, 6),
        (encoded(WHOLE, "JPEG", quality=95, progressive=True), WHOLE, 6),
        (encoded(WHOLE.convert("L"), "JPEG", quality=95), grey_of(WHOLE), 3),
        (encoded(WHOLE, "WEBP", lossless=True), WHOLE, 0),
        (encoded(WHOLE, "WEBP", quality=95), WHOLE, 8),
        (encoded(WHOLE.quantize(256)), WHOLE.quantize(256).convert("RGB"), 0),
        (encoded(WHOLE.convert("L")), grey_of(WHOLE), 0),
        (encoded(WHOLE.convert("1")), WHOLE.convert("1").convert("RGB"), 0),
        (encoded(WHOLE.convert("LA")), grey_of(WHOLE), 0),
        (encoded(WHOLE.convert("RGBA")), WHOLE, 0),
        (encoded(Image.fromarray(np.asarray(WHOLE.convert("L")).astype(np.uint16) * 257)), grey_of(WHOLE), 0),
        (encoded(WHOLE.convert("CMYK"), "JPEG", quality=95), WHOLE, 6),
    ],
)
def test_what_is_taken(data: bytes, expected: Image.Image, tolerance: float) -> None:
    picture = open_picture(data, "image")
    assert picture.size == picture.image.size == expected.size
    assert picture.alpha is None
    assert far(picture, expected) <= tolerance


def test_colours_of_16_bits() -> None:
    """As PNG stores them: Pillow writes none, so the file is made by hand."""
    import zlib

    shades = np.asarray(WHOLE).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in shades)
    plain = encoded(WHOLE)
    at = plain.index(b"IDAT") - 4

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *WHOLE.size, 16, 2, 0, 0, 0))
    data = plain[:8] + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert at > 0 and far(open_picture(data, "image"), WHOLE) == 0


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_what_is_transparent_shows_white_and_makes_a_mask(format: str) -> None:
    picture = open_picture(encoded(opaque_disc(), format, lossless=True), "image")
    assert picture.alpha is not None and (picture.alpha == disc()).all()
    assert (pixels(picture)[~disc()] == 255).all()
    assert (pixels(picture)[disc()] == pixels(WHOLE)[disc()]).all()


def with_key(mode: str) -> tuple[Image.Image, Any]:
    """A picture in which one colour is said to be transparent, and which one."""
    marked = Image.fromarray(np.where(disc()[..., None], np.asarray(WHOLE), (250, 5, 250)).astype(np.uint8))
    if mode == "P":
        image = marked.quantize(64)
        return image, image.getpixel((0, 0))
    if mode == "1":
        return Image.fromarray(disc()), 0
    if mode == "I;16":
        return Image.fromarray(np.where(disc(), 40000, 7).astype(np.uint16)), 7
    image = marked.convert(mode)
    return image, image.getpixel((0, 0))


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1", "I;16"])
def test_a_transparent_colour(mode: str) -> None:
    image, key = with_key(mode)
    picture = open_picture(encoded(image, transparency=key), "image")
    assert picture.alpha is not None
    assert (picture.alpha != disc()).mean() <= (0.01 if mode in "PL" else 0)  # a few pixels may be of the key's colour
    assert (pixels(picture)[~picture.alpha] == 255).all()


def test_a_palette_with_transparency_of_its_own() -> None:
    image = WHOLE.quantize(16)
    picture = open_picture(encoded(image, transparency=bytes([0] * 8 + [255] * 8)), "image")
    assert picture.alpha is not None and (picture.alpha == (np.asarray(image) >= 8)).all()


def test_nearly_opaque_is_no_mask_and_transparent_everywhere_no_picture() -> None:
    assert open_picture(encoded(Image.new("RGBA", (32, 32), (9, 9, 9, 200))), "image").alpha is None
    value, _ = refused(encoded(Image.new("RGBA", (32, 32), (9, 9, 9, 100))))
    assert "transparent everywhere" in value


UNDONE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_pictures_are_turned_upright(format: str, orientation: int) -> None:
    """The pixels are stored the other way round: what is seen is the same for all eight."""
    how = UNDONE.get(orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {"quality": 95}
    picture = open_picture(
        encoded(WHOLE.transpose(how) if how is not None else WHOLE, format, exif=exif, **options), "i"
    )
    assert picture.size == picture.image.size == WHOLE.size
    assert far(picture, WHOLE) <= (6 if format == "JPEG" else 0)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_there_is_not(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert far(open_picture(encoded(WHOLE, exif=exif), "image"), WHOLE) == 0
    assert far(open_picture(encoded(WHOLE, exif=b"Exif\0\0MM\0\x2anonsense"), "image"), WHOLE) == 0


def profile(space: str) -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes()  # type: ignore[arg-type]


def wide_profile() -> bytes:
    """sRGB's profile with red and green exchanged: what is stored as red is green."""
    data = bytearray(profile("sRGB"))
    count = struct.unpack(">I", data[128:132])[0]
    at = {bytes(data[132 + 12 * n : 136 + 12 * n]): 132 + 12 * n for n in range(count)}
    red, green = at[b"rXYZ"], at[b"gXYZ"]
    data[red + 4 : red + 12], data[green + 4 : green + 12] = data[green + 4 : green + 12], data[red + 4 : red + 12]
    return bytes(data)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_colour_profiles_are_obeyed(format: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {"quality": 95}
    same = open_picture(encoded(WHOLE, format, icc_profile=profile("sRGB"), **options), "image")
    assert far(same, WHOLE) <= 6 and not same.notices
    exchanged = open_picture(encoded(WHOLE, format, icc_profile=wide_profile(), **options), "image")
    red, green, blue = WHOLE.split()
    assert far(exchanged, Image.merge("RGB", (green, red, blue))) <= 8 and not exchanged.notices
    assert far(exchanged, WHOLE) > 20


def test_colour_profiles_beside_transparency() -> None:
    picture = open_picture(encoded(opaque_disc(), icc_profile=wide_profile()), "image")
    assert picture.alpha is not None and (picture.alpha == disc()).all()
    assert (np.abs(pixels(picture)[disc()][:, [1, 0, 2]] - pixels(WHOLE)[disc()]) <= 3).all()


@pytest.mark.parametrize("broken", [b"no profile at all", profile("LAB"), profile("sRGB")[:200]])
def test_a_profile_of_no_use_is_left_out_and_told(broken: bytes) -> None:
    picture = open_picture(encoded(WHOLE, icc_profile=broken), "image")
    assert far(picture, WHOLE) == 0
    assert "colour profile" in picture.notices[0]


def test_cmyk_without_a_profile_is_told() -> None:
    (notice,) = open_picture(encoded(WHOLE.convert("CMYK"), "JPEG"), "image").notices
    assert "CMYK" in notice


def test_cmyk_with_a_profile() -> None:
    inks = Image.new("CMYK", (32, 32), (255, 0, 0, 0))
    picture = open_picture(encoded(inks, "JPEG", icc_profile=ink_profile(), quality=95), "image")
    assert not picture.notices
    red, green, blue = pixels(picture).mean(axis=(0, 1))
    assert red > 220 and green < 80 and blue < 80
    assert pixels(open_picture(encoded(inks, "JPEG"), "image")).mean(axis=(0, 1))[0] < 20, "cyan without"


def frames() -> list[Image.Image]:
    return [WHOLE, WHOLE.transpose(Image.Transpose.ROTATE_180)]


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"", "an empty file"),
        (b"\0" * 5000, "no picture"),
        (b"hello", "no picture"),
        (encoded(WHOLE, "GIF"), "a GIF"),
        (encoded(WHOLE, "TIFF"), "a TIFF"),
        (encoded(WHOLE, "BMP"), "a BMP"),
        (encoded(WHOLE, "AVIF"), "an AVIF"),
        (encoded(WHOLE, "JPEG2000"), "a JPEG 2000"),
        (b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b"<svg/>", "an SVG drawing"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer to a file in Git LFS"),
        (b"%PDF-1.7", "a PDF"),
        (encoded(frames()[0], "PNG", save_all=True, append_images=frames()[1:]), "an animated picture"),
        (encoded(frames()[0], "WEBP", save_all=True, append_images=frames()[1:]), "an animated picture"),
        (encoded(Image.new("RGB", (1, 1))), "1x1 pixels"),
        (encoded(Image.new("RGB", (1, 1)), "JPEG"), "1x1 pixels"),
        (encoded(Image.new("RGB", (1, 1)), "WEBP"), "1x1 pixels"),
        (encoded(Image.new("RGB", (500, 2))), "500x2 pixels"),
        (png_header(60000, 60000), "60000x60000 pixels"),
        (png_header(2**31 - 1, 2**31 - 1), "2147483647x2147483647 pixels"),
    ],
)
def test_what_is_refused(data: bytes, value: str) -> None:
    assert refused(data)[0] == value


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_what_is_cut_off_is_refused(format: str, share: float) -> None:
    noise = np.random.default_rng(7).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), format)
    value, fix = refused(data[: int(len(data) * share)])
    assert "damaged or cut off" in value or value == "no picture"
    assert "again" in fix


@given(some.sampled_from(["PNG", "JPEG", "WEBP"]), some.data())
def test_no_bytes_end_in_another_error(format: str, data: some.DataObject) -> None:
    content = bytearray(encoded(WHOLE, format))
    for _ in range(data.draw(some.integers(1, 5))):
        content[data.draw(some.integers(0, len(content) - 1))] = data.draw(some.integers(0, 255))
    try:
        picture = open_picture(bytes(content), "image")
    except InputError as error:
        assert len(error.problems) == 1
    else:
        assert picture.image.mode == "RGB" and picture.image.width * picture.image.height <= WORKING_PIXELS


def test_the_bombs_of_every_format() -> None:
    jpeg = bytearray(encoded(WHOLE, "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 60000, 60000)
    assert refused(bytes(jpeg))[0] == "60000x60000 pixels"
    webp = bytearray(encoded(opaque_disc(), "WEBP"))
    webp[24:30] = (16382).to_bytes(3, "little") * 2
    assert refused(bytes(webp))[0] == "16383x16383 pixels"
    lossless = bytearray(encoded(WHOLE, "WEBP", lossless=True))
    lossless[21:25] = (16382 | 16382 << 14).to_bytes(4, "little")
    assert refused(bytes(lossless))[0] == "16383x16383 pixels"


def test_the_header_is_read_without_decoding() -> None:
    header = read_header(png_header(8000, 6000), "image")
    assert (header.format, header.width, header.height) == ("png", 8000, 6000)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_large_pictures_are_reduced(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consistory_ray.pictures.opening.WORKING_PIXELS", 200 * 120)
    large = gradient(1000, 600)
    options = {"lossless": True} if format == "WEBP" else {}
    picture = open_picture(encoded(large, format, **options), "image")
    assert picture.size == (1000, 600)
    assert picture.image.size == ((125, 75) if format == "JPEG" else (200, 120))  # a JPEG is halved first
    assert far(picture, large.resize(picture.image.size, Image.Resampling.BOX)) < 4


@pytest.mark.slow
@pytest.mark.parametrize(("format", "megapixels"), [("png", 120), ("jpg", 120), ("webp", 60)])
def test_memory_is_bounded(format: str, megapixels: int, tmp_path: Path) -> None:
    """An honest picture of nearly the largest size, opened by a process that tells its peak."""
    side = 1000 * megapixels // 12
    assert side * 12_000 <= MAX_PIXELS[format]
    image = Image.new("RGBA" if format != "jpg" else "RGB", (side, 12_000), (200, 30, 60))
    path = tmp_path / f"large.{format}"
    image.save(path, **({"compress_level": 1} if format == "png" else {"quality": 50, "method": 0}))
    code = (
        "import resource, sys; from pathlib import Path; from consistory_ray.pictures import open_picture;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        f"picture = open_picture(Path(sys.argv[1]).read_bytes(), 'image'); assert picture.size == ({side}, 12000);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) * (1024 if sys.platform != "darwin" else 1) < 1 << 30
