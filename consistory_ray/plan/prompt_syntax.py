"""What other programs would take for instructions in a prompt. Here every character is text that the model reads."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NUMBER = r"\d*\.?\d+"
_FLAGS = (
    "ar|aspect|seed|s|stylize|style|v|version|niji|q|quality|no|chaos|c|w|h|width|height|sref|cref|cw|sw|iw|sv|steps|"
    "sampler|cfg|scale|tile|hd|neg|negative|raw|video|weird|draft|n|batch|denoise|strength|model|profile|p|oref|ow"
)


@dataclass(frozen=True, slots=True)
class Syntax:
    """One kind of instruction.

    Attributes:
        kind: a name for machines.
        what: it is, in words.
        instead: what to do here.
        pattern: finds it.
    """

    kind: str
    what: str
    instead: str
    pattern: re.Pattern[str]


SYNTAXES = (
    Syntax(
        "prompt-lora",
        "tags that load a LoRA or a hypernetwork",
        "they load nothing: list the file under loras at the top of the job, as in {path: FILE, weight: 0.8}",
        re.compile(r"<(?:lora|lyco|locon|loha|hypernet|hypernetwork)\s*:[^<>]{0,200}>", re.IGNORECASE),
    ),
    Syntax(
        "prompt-embedding",
        "names of embeddings",
        "they load nothing: list the file under embeddings at the top of the job, and write its token in the prompt",
        re.compile(r"(?<!\w)embeddings?:[\w./-]+", re.IGNORECASE),
    ),
    Syntax(
        "prompt-weight",
        "weights of words",
        "they are read as text: set prompt_syntax: compel under settings and write (word)1.3, or leave them out",
        re.compile(
            rf"\([^()]{{0,200}}[^\s\d()]\s*:(?:-?{_NUMBER}|\s+-?\d*\.\d+)\s*\)"
            r"|\(\([^()]{1,200}\)\)|\[\[[^\[\]]{1,200}\]\]|\{\{[^{}]{1,200}\}\}"
            r"|(?:[A-Za-z]{3,}|[)\"'])\+\+(?=[\s,.;)]|$)|\)-{2,}(?=[\s,.;)]|$)|\)\d*\.\d+(?=[\s,.;)]|$)"
            rf"|[^\W\d_]::(?![\d.]*\s*\])-?{_NUMBER}"
        ),
    ),
    Syntax(
        "prompt-schedule",
        "words that change while a picture is made",
        "they do not: write the words that are to be there",
        re.compile(
            rf"\[[^\[\]]{{0,200}}[^\s\d\[\]]\s*:\s*{_NUMBER}%?\s*\]"
            rf"|\[[^\[\]]{{0,200}}:[^\[\]]{{0,200}}:\s*{_NUMBER}%?\s*\]"
        ),
    ),
    Syntax(
        "prompt-choice",
        "choices and wildcards",
        "nothing is chosen: write dynamic_prompts: true to have {a|b} and __names__ drawn, or a scene for each",
        re.compile(
            r"\{[^{}]{0,200}\|[^{}]{0,200}\}|\[[^\[\]]{0,200}\|[^\[\]]{0,200}\]"
            r"|(?<![^\W_])__[A-Za-z0-9*][\w*./ -]{0,60}?__(?![^\W_])"
        ),
    ),
    Syntax(
        "prompt-keyword",
        "BREAK and AND as instructions",
        "they are read as words: write the prompt as one sentence",
        re.compile(
            r"(?:(?<=[a-z0-9)\],.]\s)|(?<=[a-z0-9)\],.])|^)(?:BREAK|ADDCOMM|ADDBASE|ADDROW|ADDCOL)(?=\s*[a-z0-9(\[<,.]|\s*$)"
            r"|(?<=[a-z0-9)\],.]\s)AND(?=\s+[a-z0-9(\[<])"
        ),
    ),
    Syntax(
        "prompt-flag",
        "options of a command line",
        "they are read as words: write them under settings, or leave them out",
        re.compile(rf"(?:(?<=\s)|^)(?:--|\u2014)(?:{_FLAGS})(?=\s+[\w.:-]+|\s*$)"),
    ),
    Syntax(
        "prompt-escape",
        "brackets with a backslash",
        "the backslash is read as text: brackets mean nothing special here, write them without it",
        re.compile(r"\\[()\[\]{}]"),
    ),
    Syntax(
        "prompt-parameters",
        "parameters that were copied with a prompt",
        "they are read as words: write them under settings",
        re.compile(r"\bNegative prompt:|\bSteps: \d+, |\bCFG scale: \d|\bSampler: \w", re.IGNORECASE),
    ),
)
_BESIDE_COMPEL = (
    *(syntax for syntax in SYNTAXES if syntax.kind not in ("prompt-weight", "prompt-escape")),
    Syntax(
        "prompt-weight",
        "weights of words as other programs write them",
        "they are read as text: write (words)1.3, or words+ and words-",
        re.compile(
            rf"\([^()]{{0,200}}[^\s\d()]\s*:-?{_NUMBER}\s*\)|\[\[[^\[\]]{{1,200}}\]\]|\{{\{{[^{{}}]{{1,200}}\}}\}}"
        ),
    ),
)
_SUSPICIOUS = re.compile(r"[(\[{<\\\u2014+]|__|--|::|BREAK|AND|ADD|[Ee]mbedding|prompt:|[Ss]teps: |scale: |ampler: ")


def find_syntax(text: str, prompts: str = "plain") -> list[tuple[Syntax, str]]:
    """The kinds of instruction in a text, each with the first of its kind.

    Args:
        text: of a prompt.
        prompts: how prompts are written, ``plain`` or ``compel``, which has weights of its own.
    """
    if _SUSPICIOUS.search(text) is None:
        return []
    wanted = SYNTAXES if prompts == "plain" else _BESIDE_COMPEL
    return [(syntax, hit.group()) for syntax in wanted if (hit := syntax.pattern.search(text)) is not None]
