"""Names of files: templates in both spellings, safe parts, no way out of the folder, collisions told beforehand."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consistory_ray.errors import InputError
from consistory_ray.export.naming import ALL_TAKES, ONE_TAKE, ending_of, named, namer
from consistory_ray.export.selection import Source

SOURCE = Source(
    asset_id="ab" * 16,
    kind="scene",
    subject="cat",
    scene="in-the-snow",
    take=2,
    prompt="a cat in the snow",
    seed=7,
    model="miniature",
    model_fingerprint="f" * 64,
    profile=None,
    path="images/cat/in-the-snow.png",
    size=10,
    sha256="0" * 64,
    width=128,
    height=96,
)
OTHER = replace(SOURCE, asset_id="cd" * 16, take=1, path="images/cat/in-the-snow.take-1.png")


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (ONE_TAKE, "cat/in-the-snow.png"),
        (ALL_TAKES, "cat/in-the-snow_2.png"),
        ("{subject}/{scene}_{take}.png", "cat/in-the-snow_2.png"),
        ("{ subject }-{{ scene }}", "cat-in-the-snow.png"),
        ("{{ subject | upper }}_{{ '%03d' % take }}.{{ ending }}", "CAT_002.png"),
        ("{% if take > 1 %}more/{% endif %}{{ asset_id[:8] }}", "more/abababab.png"),
        ("{width}x{height}/{profile}/{seed}.{ending}", "128x96/exact/7.png"),
        (".hidden/con/{scene}. ", "_.hidden/_con/in-the-snow.png"),
        ("{subject}./{scene}", "cat/in-the-snow.png"),
    ],
)
def test_templates(template: str, name: str) -> None:
    assert namer(template, "png")(SOURCE) == name


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ hero }}.png", "its variables are subject"),
        ("{hero}.png", "its variables are subject"),
        ("{{ subject", "jinja2"),
        ("{{ subject.__class__.__mro__ }}.png", "its variables are"),
        ("{{ 1 / 0 }}.png", "division by zero"),
        ("/etc/{scene}.png", "relative path"),
        ("../{scene}.png", "relative path"),
        ("{subject}/../../{scene}.png", "relative path"),
        ("{subject}//{scene}.png", "relative path"),
        ("{scene}.webp", "--format"),
        ("{{ subject * 100 }}.png", "200 bytes"),
        ("x" * 3000, "2000 characters"),
    ],
)
def test_what_cannot_be_used_names_the_option_and_the_fix(template: str, told: str) -> None:
    with pytest.raises(InputError, match=re.escape(told)) as caught:
        namer(template, "png")(SOURCE)
    assert [problem.path for problem in caught.value.problems] == ["--layout"]


def test_values_make_no_folders() -> None:
    odd = replace(SOURCE, subject="../../etc", scene='a/b\\c:d*"e?\n')
    assert namer("{subject}/{scene}", "png")(odd) == "_.._.._etc/a_b_c_d__e__.png"


text = st.text(max_size=40)


@settings(max_examples=60, deadline=None)
@given(subject=text, scene=text)
def test_any_values_make_a_path_below_the_folder_that_every_system_takes(subject: str, scene: str) -> None:
    odd = replace(SOURCE, subject=subject, scene=scene)
    try:
        path = namer("{subject}/{scene}", "png")(odd)
    except InputError as error:
        assert {subject, scene} & {"", ".", ".."} or "bytes" in str(error)
        return
    parts = path.split("/")
    assert len(parts) == 2 and parts[1].endswith(".png")
    for part in parts:
        assert part.isprintable() and not re.search(r'[<>:"\\|?*]', part) and len(part.encode()) <= 200
        assert not part.startswith(".") and not part.endswith((".", " "))
        assert part.split(".")[0].lower() not in ("con", "nul", "com1", "aux", "prn")


def test_two_pictures_of_one_name_are_told_with_both() -> None:
    with pytest.raises(InputError, match="overwrite each other") as caught:
        named([OTHER, SOURCE], ONE_TAKE, "png")
    (problem,) = caught.value.problems
    assert problem.value == "cat/in-the-snow.png"
    assert OTHER.path in problem.fix and SOURCE.path in problem.fix
    assert list(named([OTHER, SOURCE], ALL_TAKES, "png")) == ["cat/in-the-snow_1.png", "cat/in-the-snow_2.png"]


def test_names_that_differ_in_case_alone_are_one_name_on_many_systems() -> None:
    with pytest.raises(InputError, match="overwrite each other"):
        named([SOURCE, replace(OTHER, scene="In-The-Snow")], ONE_TAKE, "png")


def test_a_file_is_no_folder_for_others() -> None:
    file, below = replace(SOURCE, scene="a"), replace(OTHER, scene="b")
    with pytest.raises(InputError, match="overwrite each other"):
        named([file, below], "{{ 'x' if scene == 'a' else 'x.png' }}{% if scene != 'a' %}/b{% endif %}", "png")


@pytest.mark.parametrize(
    ("template", "ending"), [("{a}.PNG", "png"), ("{a}.webp", "webp"), ("{a}", None), ("a.b", None)]
)
def test_the_format_of_a_template(template: str, ending: str | None) -> None:
    assert ending_of(template) == ending
