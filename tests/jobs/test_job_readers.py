"""Files of every layout become the same data, and broken or hostile ones one clear error."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from consistory_ray.errors import JobError, Problem
from consistory_ray.guards.problems import MAX_PROBLEMS
from consistory_ray.jobs.job import RenderJob, load_job
from consistory_ray.jobs.readers import MAX_BYTES
from consistory_ray.jobs.yaml_events import MAX_DEPTH, plain, read_yaml

GOOD = """\
name: quickstart
model: acme/xl
settings: {num_inference_steps: 50, seed: 7}
subjects:
  - id: moss-dragon
    concept: dragon                       # or a list
    style: "a drawing of"
    subject: "a dragon"
    anchors: ["in the forest", "on the beach"]
    scenes: ["in space", {id: night-city, prompt: "in the city at night", seed: 3, count: 2}]
"""
PLUS = """\
animals:
  - subject: "a red fox"
    concept_token: fox
    style: "a watercolour of"
    settings: ["in the wood", "by a stream", "asleep", "jumping"]
people:
  - subject: "a potter and a dog"
    concept_token: [potter, dog]
    style: "a photo of"
    settings: [at work, at home, outside]
"""
CSV = """\
subject_id,concept,subject,style,prompt,kind,seed,id
fox,fox,a red fox,a watercolour of,in the wood,anchor,,
fox,,,,by a stream,anchor,5,
fox,,,,asleep,,,nap
pair,potter; dog,a potter and a dog,,at work,,,
pair,,,,at home,,,
pair,,,,"outside, in the rain",,7,
"""


def load(folder: Path, name: str, content: str | bytes) -> RenderJob:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_job(str(path))


def problems(folder: Path, name: str, content: str | bytes) -> list[Problem]:
    with pytest.raises(JobError) as caught:
        load(folder, name, content)
    assert caught.value.problems
    return list(caught.value.problems)


def test_yaml_and_json_are_the_same_job(tmp_path: Path) -> None:
    from_yaml = load(tmp_path, "a.yaml", GOOD)
    assert load(tmp_path, "a.JSON", json.dumps(yaml.safe_load(GOOD))) == from_yaml
    assert from_yaml.subjects[0].scenes[1].count == 2


def test_a_job_is_read_from_any_url() -> None:
    with fsspec.open("memory://jobs/today.yaml", "wb") as stream:
        stream.write(GOOD.replace("name: quickstart\n", "").encode())
    assert load_job("memory://jobs/today.yaml").name == "today"


def test_a_byte_order_mark_and_windows_lines_are_fine(tmp_path: Path) -> None:
    assert load(tmp_path, "a.yml", b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode()).name == "quickstart"


def test_the_shared_benchmark_layout_is_read(tmp_path: Path) -> None:
    job = load(tmp_path, "bench.yaml", PLUS)
    fox, pair = job.subjects
    assert job.name == "bench"
    assert [anchor.prompt for anchor in fox.anchors] == ["in the wood", "by a stream"]
    assert [scene.prompt for scene in fox.scenes] == ["asleep", "jumping"]
    assert (fox.style, fox.concept, pair.concept) == ("a watercolour of", ("fox",), ("potter", "dog"))
    configured = load(tmp_path, "b.yaml", "model: acme/xl\nsettings: {seed: 4}\n" + PLUS)
    assert (configured.model, configured.settings.seed, configured.subjects) == ("acme/xl", 4, job.subjects)


def test_problems_of_the_shared_layout_keep_its_own_names(tmp_path: Path) -> None:
    text = PLUS.replace("asleep", "").replace("[potter, dog]", "[potter, 7]").replace('style: "a photo of"', "stile: x")
    found = [
        (problem.path, problem.fix) for problem in problems(tmp_path, "a.yaml", text + "odd: [{concept_token: a}]")
    ]
    assert sorted(path for path, _ in found) == [
        "animals[0].settings[2]",
        "odd[0].settings",
        "people[0].concept_token[1]",
        "people[0].stile",
    ]
    assert "style" in dict(found)["people[0].stile"]


def test_a_table_of_prompts_is_read(tmp_path: Path) -> None:
    fox, pair = load(tmp_path, "a.csv", CSV).subjects
    assert [(anchor.prompt, anchor.seed) for anchor in fox.anchors] == [("in the wood", None), ("by a stream", 5)]
    assert [(scene.prompt, scene.id) for scene in fox.scenes] == [("asleep", "nap")]
    assert pair.concept == ("potter", "dog")
    assert [anchor.prompt for anchor in pair.anchors] == ["at work", "at home"]
    assert [(scene.prompt, scene.seed) for scene in pair.scenes] == [("outside, in the rain", 7)]


def test_parquet_is_the_same_table(tmp_path: Path) -> None:
    table = pa.table(
        {
            "prompt": ["a cat here", "a cat there", "a cat up", "a cat down"],
            "concept": [["cat"]] * 4,
            "seed": [1.0, None, 2.0, float("nan")],  # as pandas writes whole numbers beside empty cells
            "subject_id": [7, 7, 7, 7],
            "count": pa.array([None, None, 3, None], pa.int16()),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    job = load_job(str(tmp_path / "a.parquet"))
    assert job.subjects[0].id == "7"
    assert [anchor.seed for anchor in job.subjects[0].anchors] == [1, None]
    assert [(scene.prompt, scene.count) for scene in job.subjects[0].scenes] == [("a cat up", 3), ("a cat down", 1)]


def test_problems_of_a_table_name_the_line(tmp_path: Path) -> None:
    text = CSV.replace("asleep", "").replace(",5,", ",-5,").replace("nap", "a/b").replace("pair,,,", "pair,,other,")
    found = {problem.path for problem in problems(tmp_path, "a.csv", text + "x,cat,a cat,,up,angel,,\n")}
    assert found == {
        "line 3, seed",
        "line 4, prompt",
        "line 4, id",
        "line 6, subject",
        "line 7, subject",
        "line 8, kind",
        "line 8, anchors",
    }


def test_a_table_needs_its_columns(tmp_path: Path) -> None:
    found = [str(problem) for problem in problems(tmp_path, "a.csv", "promt,concept\nx,y\n")]
    assert any('did you mean "prompt"?' in text for text in found)
    assert any("missing" in text for text in found)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("~", None),
        ("", None),
        ("True", True),
        ("-7", -7),
        ("0x1F", 31),
        ("0o17", 15),
        ("010", 10),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("9" * 30, "9" * 30),
        ("1.2.3", "1.2.3"),
        ("-", "-"),
        ("+", "+"),
        (".", "."),
    ],
)
def test_unquoted_yaml_follows_the_core_schema(text: str, value: Any) -> None:
    assert plain(text) == value
    assert type(plain(text)) is type(value)


def test_anchors_and_aliases_are_followed() -> None:
    value, found = read_yaml("a: &x [1, &y two, {k: *y}]\nb: *x\n*y : 3")
    assert (value, found) == ({"a": [1, "two", {"k": "two"}], "b": [1, "two", {"k": "two"}], "two": 3}, [])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2", "twice"),
        ("a: {b: [{c: 1, c: 2}]}", "twice"),
        ("a: !!python/object/apply:os.system ['true']", "tag"),
        ("!!set {a}", "tag"),
        ("a: !!binary aGk=", "tag"),
        ("a: *nowhere", "anchor"),
        ("a: &a [*a]", "anchor"),
        ("<<: {a: 1}", "merge"),
        ("? [1, 2]\n: 3", "key"),
        ("a: 1\n---\nb: 2", "one document"),
        ("a: [1, 2", "broken"),
        ("a: b: c", "broken"),
        ("\tx: 1", "broken"),
        ("a: \x07", "unprintable"),
        ("[" * 1_000_000, "deep"),
        ("- " * 100_000, "deep"),
        ("{a: " * (MAX_DEPTH + 1), "deep"),
    ],
)
def test_yaml_with_a_trap_is_refused(text: str, words: str) -> None:
    value, found = read_yaml(text)
    assert any(words in str(problem) for problem in found), found
    assert value is None or words == "twice"


def test_a_duplicate_key_names_its_place() -> None:
    _, found = read_yaml("subjects:\n  - id: a\n  - id: b\n    style: x\n    style: y\n")
    assert (found[0].path, found[0].value) == ("subjects[1].style", "line 5")


def test_aliases_cannot_explode() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    before = time.process_time()
    value, found = read_yaml("\n".join(lines))
    assert value is None
    assert "values" in str(found[0])
    assert time.process_time() - before < 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", "{"),
        ("a.json", '{"name": "a", "name": "b", "subjects": []}'),
        ("a.json", "[" * 50_000),
        ("a.json", '{"settings": {"seed": ' + "9" * 10_000 + "}}"),
        ("a.json", '{"settings": {"guidance_scale": NaN}}'),
        ("a.json", '"text"'),
        ("a.json", '{"name": "\\ud800", "subjects": []}'),
        ("a.yaml", ""),
        ("a.yaml", "# nothing"),
        ("a.yaml", b"\xff\xfe\x00"),
        ("a.yaml", "name: " + "x" * 10_000_000),
        ("a.csv", ""),
        ("a.csv", "prompt,concept\n"),
        ("a.csv", 'prompt,concept\n"' + "x" * 2_000_000),
        ("a.csv", "prompt,concept\nx,y,z\n"),
        ("a.csv", "prompt,concept,prompt\nx,y,z\n"),
        ("a.csv", "prompt,concept\na\0cat,cat\n"),
        ("a.parquet", b"PAR1 no PAR1"),
        ("a.parquet", b""),
    ],
)
def test_a_broken_file_is_one_clear_error(tmp_path: Path, name: str, content: str | bytes) -> None:
    assert all(len(str(problem)) < 1000 for problem in problems(tmp_path, name, content))


def test_a_file_that_is_not_there_or_of_no_known_kind_is_named(tmp_path: Path) -> None:
    for source, word in [
        (str(tmp_path / "none.yaml"), "no such file"),
        (str(tmp_path / "none.txt"), ".yaml"),
        (str(tmp_path), ".yaml"),
        ("nowhere://x/job.yaml", "nowhere"),
        ("job\0.yaml", "path"),
    ]:
        with pytest.raises(JobError, match="cannot be read") as caught:
            load_job(source)
        assert word in str(caught.value)


def test_a_file_of_unlimited_size_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as stream:
        os.truncate(stream.fileno(), MAX_BYTES[".yaml"] + 1)
    with pytest.raises(JobError, match="more than 64 MiB"):
        load_job(str(path))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"subjects": [' + ",".join(["{}"] * 50_000) + "]}"),
        ("a.json", '{"subjects": [{"scenes": [' + ",".join(['""'] * 50_000) + "]}]}"),
        ("a.json", '{"subjects": [{"concept": "a", "scenes": [' + ",".join(['"b"'] * 50_000) + "]}]}"),
        ("a.json", "{" + ",".join(f'"k{n}": 1' for n in range(50_000)) + "}"),
        ("a.yaml", "subjects: [{concept: a, anchors: [" + "7," * 50_000 + "]}]"),
        ("a.yaml", "".join(f"k{n}: 1\n" for n in range(50_000))),
        ("a.csv", ",".join(f"k{n}" for n in range(50_000)) + "\n"),
        ("a.csv", "prompt,concept,seed\n" + "x,cat,-\n" * 30_000),
    ],
)
def test_a_file_with_endless_errors_is_told_in_bounded_time(tmp_path: Path, name: str, text: str) -> None:
    before = time.process_time()
    assert 1 <= len(problems(tmp_path, name, text)) <= 2 * MAX_PROBLEMS
    assert time.process_time() - before < 10


_FRAGMENTS = st.sampled_from(
    [
        *(
            "a",
            "subjects",
            ": ",
            "\n",
            "- ",
            "  ",
            "[",
            "]",
            "{",
            "}",
            "&x ",
            "*x",
            "!t ",
            "? ",
            "|",
            ">",
            "'",
            '"',
            "#",
        ),
        *("<<", "---\n", "%YAML 1.1\n", ",", "\t", "\0", "\ud7ff", "~", ".nan", "1e999"),
        *("\\", "\u2028", "@", "`"),
    ]
)


@settings(deadline=None, max_examples=300)
@given(st.lists(_FRAGMENTS, max_size=30).map("".join) | st.text(max_size=60))
def test_any_text_is_yaml_or_a_problem(text: str) -> None:
    value, found = read_yaml(text)
    assert value is None or isinstance(value, (str, int, float, list, dict))
    assert all(problem.path and problem.fix for problem in found)


def _same_in_both(text: str) -> bool:
    """PyYAML writes YAML 1.1, where 0E0 is text and needs no quotes; here YAML 1.2 is read, where it is a number."""
    return yaml.safe_dump(text)[:1] in "'\"|>?" or plain(text) is text


_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**15), 10**15) | st.text(max_size=12).filter(_same_in_both),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6).filter(_same_in_both), inner, max_size=4)
    ),
    max_leaves=15,
)


@settings(deadline=None, max_examples=100)
@given(_values)
def test_what_yaml_writes_is_read_back(value: Any) -> None:
    read, found = read_yaml(yaml.safe_dump(value, allow_unicode=False))
    assert (read, found) == (value, [])
