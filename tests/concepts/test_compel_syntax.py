"""What prompts without syntax say is known without compel's parser, and is what that makes of them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from compel.prompt_parser import Blend, PromptParser
from hypothesis import given, settings
from hypothesis import strategies as st

from consistory_ray.concepts.compel_syntax import SyntaxFault, read_prompt

_WORDS = r"a|dragon|moss-green|red|é|<moss>|x.y|3|-5|0.5|useLora"
_MARKS = r""",|.|-|--|+|++| |  |(|)|)1.2|)0.5|"|\(|\)|=|:|.and(|.blend("""
PIECES = st.sampled_from([*_WORDS.split("|"), *_MARKS.split("|"), "\t"])
PROMPTS = st.lists(PIECES, max_size=12).map("".join)
PARSER = PromptParser()


@settings(max_examples=120, deadline=None)
@given(PROMPTS)
def test_fragments_are_those_of_compels_own_parser(prompt: str) -> None:
    try:
        reading = read_prompt(prompt)
    except SyntaxFault:
        return
    parts = [part.prompts if type(part) is Blend else [part] for part in PARSER.parse_conjunction(prompt).prompts]
    theirs = [[[(child.text, child.weight) for child in one.children] for one in part] for part in parts]
    ours = [[[(one.text, one.weight) for one in fragments] for fragments in part] for part in reading.parts]
    assert ours == theirs or (ours == [[[("", 1.0)]]] and theirs == [])
    for part in reading.parts:
        for fragments in part:
            for one in fragments:
                assert reading.text[one.start : one.start + len(one.text)] == one.text


@pytest.mark.parametrize(
    "prompt", ["a (b", "a) b", "(" * 3000 + "a" + ")" * 3000, "a" + "+" * 8000, '("a","b").blend(1,-1)']
)
def test_what_cannot_be_read_is_told_and_nothing_else_happens(prompt: str) -> None:
    with pytest.raises(SyntaxFault):
        read_prompt(prompt)


def test_prompts_are_read_without_torch() -> None:
    code = (
        "import sys; from consistory_ray.concepts.compel_syntax import read_prompt as r; "
        "print(r('a (red)1.2 cat').text); sys.exit('torch' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "a red cat"
