"""What a picture file says of how the picture came to be, written by this package and read by others, and back."""

from __future__ import annotations

import io
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from consistory_ray.pictures.provenance import (
    IPTC_EXTENSION,
    PACKET,
    TRAINED,
    VOCABULARY,
    XMP_KEYWORD,
    marked,
    packet_chunk,
    source_type,
    xmp_packet,
)

IN_A_TEXT = f"<e:DigitalSourceType> {TRAINED}\n</e:DigitalSourceType>"
IN_A_REFERENCE = f'<e:DigitalSourceType rdf:resource="{TRAINED}"/>'


def packet(inside: str, attribute: str = "", head: str = "") -> str:
    return (
        f'{head}<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:e="{IPTC_EXTENSION}"{attribute}>{inside}</rdf:Description>'
        "</rdf:RDF></x:xmpmeta>"
    )


def png(said: str | None = None, **options: Any) -> bytes:
    info, file = PngImagePlugin.PngInfo(), io.BytesIO()
    if said is not None:
        info.add_itxt(XMP_KEYWORD, said, **options)
    Image.new("RGB", (9, 7), "teal").save(file, "PNG", pnginfo=info)
    return file.getvalue()


def webp(said: str | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 7), "teal").save(file, "WEBP", xmp=(said or "").encode(), **options)
    return file.getvalue()


def test_another_reader_finds_it_in_both_formats(tmp_path: Path) -> None:
    """Pillow, which has a parser of its own, and exiftool where it is installed."""
    pytest.importorskip("defusedxml", reason="Pillow needs it to read XMP")
    for name, data in {"a.png": marked(png()), "a.webp": webp(PACKET)}.items():
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            said = image.getxmp()["xmpmeta"]["RDF"]["Description"]
        assert said["DigitalSourceType"] == TRAINED and said["CreatorTool"] == "consistory_ray"
        (tmp_path / name).write_bytes(data)
        if tool := shutil.which("exiftool"):
            command = [tool, "-s3", "-n", "-XMP-iptcExt:DigitalSourceType", str(tmp_path / name)]
            assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == TRAINED


def test_marking_is_a_chunk_before_the_pixels_and_changes_nothing_else() -> None:
    plain = png()
    data = marked(plain)
    assert data.replace(packet_chunk(), b"") == plain and data.index(packet_chunk()) < data.index(b"IDAT")
    assert marked(data) == data, "once is enough"
    assert marked(png(packet(""))) == png(packet("")), "what another tool has written stays"
    with Image.open(io.BytesIO(data)) as image:
        image.verify()
    assert png(PACKET) == data, "the same as Pillow writes it"
    for other in (webp(), b"", plain[:20], b"nothing"):
        with pytest.raises(ValueError, match="no PNG"):
            marked(other)


@pytest.mark.parametrize("write", [png, webp])
def test_every_way_of_writing_a_property_is_read(write: Any, tmp_path: Path) -> None:
    in_an_attribute = packet("", f' e:DigitalSourceType="{TRAINED}"')
    for said in (PACKET, packet(IN_A_TEXT), packet(IN_A_REFERENCE), in_an_attribute, f"\ufeff{PACKET}\0"):
        assert source_type(write(said)) == TRAINED, said
    other = packet(IN_A_TEXT.replace("trainedAlgorithmicMedia", "digitalCapture"))
    assert source_type(write(other)) == f"{VOCABULARY}digitalCapture"
    file = tmp_path / "picture"
    file.write_bytes(write(PACKET))
    assert source_type(file) == source_type(str(file)) == TRAINED


def test_a_compressed_packet_is_read_and_a_huge_one_is_not() -> None:
    assert source_type(png(PACKET, zip=True)) == TRAINED
    assert source_type(webp(PACKET, lossless=True)) == TRAINED
    assert source_type(png(PACKET + " " * (2 << 20), zip=True)) is None


@pytest.mark.parametrize("write", [png, webp])
def test_what_says_nothing(write: Any) -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
    silent = [None, "", "no xml", packet(""), packet("<e:DigitalSourceType/>"), packet("", head=bomb)]
    for said in (*silent, packet(IN_A_TEXT.replace("</e:", "</f:")), packet(IN_A_TEXT, head=bomb)):
        assert source_type(write(said)) is None, said
    elsewhere = packet(f'<e:Other xmlns:g="urn:x"><g:DigitalSourceType>{TRAINED}</g:DigitalSourceType></e:Other>')
    assert source_type(write(elsewhere)) is None
    data = write(PACKET).replace(b"consistory_ray", b"consistory\xff\xfe\xfd\xfc")
    assert source_type(data) is None, "no UTF-8"


def test_other_files_say_nothing_and_missing_ones_are_told(tmp_path: Path) -> None:
    for data in (b"", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", PACKET.encode(), b"GIF89a"):
        assert source_type(data) is None
    with pytest.raises(FileNotFoundError):
        source_type(tmp_path / "none.png")


@given(data=st.data(), whole=st.sampled_from([marked(png()), webp(PACKET), png(PACKET, zip=True)]))
def test_broken_files_are_read_without_harm(data: st.DataObject, whole: bytes) -> None:
    cut = data.draw(st.integers(0, len(whole)))
    place, value = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 255))
    for broken in (whole[:cut], whole[:place] + bytes([value]) + whole[place + 1 :]):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert source_type(broken) is None or isinstance(xmp_packet(broken), str)
