"""Dynamic prompts: what is written is what is read, and nothing is drawn that is not possible."""

from __future__ import annotations

import re
import time
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consistory_ray.jobs.template_draws import MAX_CHAIN, UNCOUNTED, Lists
from consistory_ray.jobs.templates import Choice, Option, Template, TemplateError, Wildcard, parse, parse_option

ANIMALS = {
    "animals/birds": ("owl", "3::raven"),
    "animal": ("cat", "__animals/birds__", "a {big|small} dog"),
    "one": ("x",),
}
LISTS = Lists(ANIMALS)

TEXT = st.text("abc {}|$:_\\3-,é", min_size=1, max_size=6)
NAMES = st.sampled_from(sorted(ANIMALS))


def merged(parts: list[str | Choice | Wildcard]) -> Template:
    """Texts that stand beside each other are one."""
    found: list[str | Choice | Wildcard] = []
    for part in parts:
        if isinstance(part, str) and found and isinstance(found[-1], str):
            found[-1] += part
        else:
            found.append(part)
    return tuple(found)


def choices(inside: st.SearchStrategy[Template]) -> st.SearchStrategy[Choice]:
    options = st.lists(st.builds(Option, inside, st.sampled_from([1000, 3000, 500, 1])), min_size=2, max_size=4)

    def choice(options: list[Option], numbers: tuple[int, int], joiner: str) -> Choice:
        least, most = sorted(min(number, len(options)) for number in numbers)
        return Choice(tuple(options), least, most, joiner if (least, most) != (1, 1) else ", ")

    return st.builds(
        choice, options, st.tuples(st.integers(0, 4), st.integers(1, 4)), st.sampled_from([", ", "", " and ", ": "])
    )


TEMPLATES: st.SearchStrategy[Template] = st.recursive(
    st.lists(st.one_of(TEXT, st.builds(Wildcard, NAMES)), max_size=3).map(merged),
    lambda inside: st.lists(st.one_of(TEXT, choices(inside)), max_size=3).map(merged),
    max_leaves=8,
)


def written(parts: Template) -> str:
    """A template as somebody would write it: the inverse of parse, found in another way."""
    return "".join(
        re.sub(r"[{}|$:_\\]", r"\\\g<0>", part)
        if isinstance(part, str)
        else f"__{part.name}__"
        if isinstance(part, Wildcard)
        else written_choice(part)
        for part in parts
    )


def written_choice(choice: Choice) -> str:
    options = "|".join(f"{option.weight / 1000:g}::{written(option.parts)}" for option in choice.options)
    return f"{{{choice.least}-{'' if choice.most is None else choice.most}$${choice.joiner}$${options}}}"


@settings(max_examples=40)
@given(TEMPLATES)
def test_what_is_written_is_read(template: Template) -> None:
    assert parse(written(template)) == template


@settings(max_examples=40)
@given(TEMPLATES, st.integers(0, 2**64))
def test_every_draw_is_among_all_that_is_possible(template: Template, seed: int) -> None:
    LISTS.check(template)
    drawn = LISTS.draw(template, Random(seed))
    assert drawn == LISTS.draw(parse(written(template)), Random(seed))
    assert len(drawn) <= LISTS.longest(template)
    if LISTS.variants(template) <= 5_000:
        every = LISTS.every(template)
        assert drawn in every and len(set(every)) == len(every) <= LISTS.variants(template)


@settings(max_examples=80)
@given(st.text("ab{}|$:_\\12-. ", max_size=40) | st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        template = parse(text)
        LISTS.check(template)
    except TemplateError as error:
        assert error.found and error.fix
    else:
        assert LISTS.variants(template) >= 1
        assert LISTS.draw(template, Random(1)) == LISTS.draw(template, Random(1))


@given(st.text(st.characters(exclude_characters="{}|$:_\\"), max_size=60))
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert parse(text) == ((text,) if text else ())


def every(text: str) -> list[str]:
    template = parse(text)
    LISTS.check(template)
    return LISTS.every(template)


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("a {red|green} cat", ["a red cat", "a green cat"]),
        ("a {|red} cat", ["a cat", "a red cat"]),
        ("{2$$a|b|c}", ["a, b", "a, c", "b, c"]),
        ("{2$$ and $$a|b}", ["a and b"]),
        ("{1-2$$ & $$a|b}", ["a", "b", "a & b"]),
        ("{0-1$$a|b}", ["", "a", "b"]),
        ("{-2$$a|b|c}", ["a", "b", "c", "a, b", "a, c", "b, c"]),
        ("{2-$$a|b|c}", ["a, b", "a, c", "b, c", "a, b, c"]),
        ("{3::a|1::b|c|0::d}", ["a", "b", "c"]),
        ("{a {big|small} cat|an owl}", ["a big cat", "a small cat", "an owl"]),
        ("{a|b} {a|b}", ["a a", "a b", "b a", "b b"]),
        ("__animals/birds__s", ["owls", "ravens"]),
        ("__animal__", ["cat", "owl", "raven", "a big dog", "a small dog"]),
        ("{2$$__animals/birds__}", ["owl, raven"]),
        ("{a|a}", ["a"]),
        (r"\{a|b\} \_\_animal\_\_ \\{a}", [r"{a|b} __animal__ \a"]),
        ("miku \\(vocaloid\\), (hat:1.2), [a|b], 5$ a_b __ x", ["miku \\(vocaloid\\), (hat:1.2), [a|b], 5$ a_b __ x"]),
        ("{16\\::9|a:b}", ["16::9", "a:b"]),
        ("two   blanks { a | b }!", ["two blanks a !", "two blanks b !"]),
    ],
)
def test_what_people_write(text: str, texts: list[str]) -> None:
    assert every(text) == texts
    assert LISTS.variants(parse(text)) >= len(texts)
    assert {LISTS.draw(parse(text), Random(seed)) for seed in range(120)} == set(texts)


@pytest.mark.parametrize(
    ("text", "found", "fix"),
    [
        ("a {red|green cat", "{red|green cat", "never closed"),
        ("a red|green} cat", "} cat", "closes nothing"),
        ("{}", "{}", "write alternatives"),
        ("{3$$a|b}", "{3$$", "2 alternatives to take 3 different ones"),
        ("{3$$__animals/birds__}", "{3$$", "2 alternatives"),
        ("{2$$a|0::b}", "{2$$", "1 alternative to take 2"),
        ("{3-2$$a|b|c}", "{3-2$$a|b|c}", "smaller number first"),
        ("{-1::a|b}", "-1::", "weights are numbers"),
        ("{0::a}", "{0::a}", "above 0"),
        ("{99999$$a|b}", "99999$$", "at most"),
        ("{33$$" + "a|" * 40 + "b}", "{33$$", "at most"),
        ("__fish__", "__fish__", "no such wildcard"),
        ("{a|{b|__fish__}}", "__fish__", "no such wildcard"),
        ("__animals/*__", "__animals/*__", "name one list"),
        ("__../secret__", "__../secret__", "below the folder"),
        ("${x=!{a|b}} ${x}", "${x=!", "no variables"),
        ("{" * 11 + "a" + "}" * 11, "{a}", "deep at most"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, found: str, fix: str) -> None:
    with pytest.raises(TemplateError) as caught:
        every(text)
    assert caught.value.found.startswith(found) and fix in caught.value.fix


def test_lists_that_lead_to_themselves_or_too_far_are_refused() -> None:
    circle = Lists({"a": ("__b__",), "b": ("x", "{y|__c__}"), "c": ("__a__",)})
    with pytest.raises(TemplateError, match="a → b → c → a"):
        circle.check(parse("__a__"))
    chain = Lists({f"n{i}": (f"__n{i + 1}__",) for i in range(MAX_CHAIN + 1)} | {f"n{MAX_CHAIN + 1}": ("x",)})
    chain.check(parse("__n2__"))
    for name in ("n1", "n0", "n1"):
        with pytest.raises(TemplateError, match="deep at most"):
            chain.check(parse(f"__{name}__"))
    with pytest.raises(TemplateError, match="no line"):
        Lists({"a": ()}).check(parse("__a__"))


def test_weights_are_kept_to() -> None:
    drawn = Counter(LISTS.draw(parse("{3::a|b|0.5::c}"), Random(seed)) for seed in range(2_000))
    assert [drawn[text] / 2_000 for text in "abc"] == pytest.approx([6 / 9, 2 / 9, 1 / 9], abs=0.03)
    pairs = Counter(LISTS.draw(parse("{2$$8::a|b|c}"), Random(seed)) for seed in range(2_000))
    assert pairs["b, c"] / 2_000 == pytest.approx(2 * 0.1 * 1 / 9, abs=0.01)
    assert parse_option(".5::a") == Option(("a",), 500) and parse_option(" a") == Option((" a",))


def test_draws_stay_as_they_are_in_every_version() -> None:
    """Other words would be other pictures."""
    text = parse("{a|b|c} {2$$d|e|f} __animal__")
    assert [LISTS.draw(text, Random(seed)) for seed in (7, 2**31, 2**63, 10**30)] == [
        *("a d, f cat", "b e, f cat", "b d, f a big dog", "c d, e cat"),
    ]


def test_sizes_are_known_before_anything_is_made() -> None:
    big = Lists({"a": tuple(f"word-{i}" for i in range(5_000)), "b": ("__a__ __a__",), "c": ("__b__ __b__ __b__",)})
    began = time.process_time()
    template = parse("__c__ {2-8$$__a__} __c__")
    big.check(template)
    assert big.variants(template) == UNCOUNTED
    assert big.longest(template) == 2 * (6 * 9 + 5) + 2 + 8 * 9 + 7 * 2
    assert len(big.draw(template, Random(1)).split()) >= 14
    assert time.process_time() - began < 3
