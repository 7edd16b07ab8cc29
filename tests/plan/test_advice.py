"""What is allowed and probably not meant: told, with a count and an example, and never in the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from consistory_ray.cli.app import app
from consistory_ray.guards.numerics import half_on_cpu
from consistory_ray.jobs.job import load_job, parse_job
from consistory_ray.plan.advice import Notes, job_notes
from consistory_ray.plan.plan import make_plan
from consistory_ray.plan.prompt_lengths import PromptReader, estimated_spans
from consistory_ray.plan.prompt_syntax import find_syntax

ROOT = Path(__file__).parents[2]
JOBS = sorted(path for path in (ROOT / "pipelines").iterdir() if path.suffix in (".yaml", ".csv"))


def notes(device: str = "auto", **changes: Any) -> Notes:
    subject = {"concept": "cat", "subject": "a cat", "anchors": ["at home", "at sea"], "scenes": ["in space"]}
    of_job = {key: changes.pop(key) for key in ("settings", "model") if key in changes}
    job = parse_job({"name": "x", "model": "acme/xl", **of_job, "subjects": [{**subject, **changes}]})
    return job_notes(job, make_plan(job), device)


def kinds(found: Notes) -> dict[str, int]:
    return {warning.kind: warning.count for warning in found.warnings}


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_the_jobs_of_this_repository_give_none(path: Path) -> None:
    job = load_job(path)
    found = job_notes(job, make_plan(job))
    assert found == Notes((), ())


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *[(text, "prompt-weight") for text in ("(word:1.2)", "(a cat: 0.8)", "((cat))", "[[cat]]", "{{cat}}", "cat++")],
        *[(text, "prompt-weight") for text in ("(cat)1.3", "cat::2 dog", "(cat, hat:1.5)", "(cat:-1)", "(cat)++")],
        *[(text, "prompt-lora") for text in ("<lora:foo:0.8>", "<LoRA:foo>", "<hypernet:x:1>", "<lyco:x:1>")],
        *[
            (text, "prompt-keyword")
            for text in ("a cat BREAK a dog", "a cat AND a dog", "a cat,BREAK,b", "a hat BREAK")
        ],
        *[(text, "prompt-choice") for text in ("{a|b} cat", "__animal__", "[cat|dog]", "{2$$a|b|c}", "__a/b-c__")],
        *[(text, "prompt-schedule") for text in ("[a::0.5]", "[a:b:0.5]", "[cat:10]", "[from:to:10]", "[a b:c d:.5]")],
        *[(text, "prompt-flag") for text in ("a --seed 5", "x --ar 16:9", "x —ar 3:2", "x --v 5.2", "x --no hands")],
        *[(text, "prompt-embedding") for text in ("embedding:easyneg", "(embedding:bad-hands, x)")],
        *[(text, "prompt-escape") for text in ("miku \\(vocaloid\\)", "a \\[b\\]")],
        *[(text, "prompt-parameters") for text in ("x Negative prompt: y", "x Steps: 20, Sampler: Euler a")],
    ],
)
def test_syntax_of_other_programs_is_found(text: str, kind: str) -> None:
    assert kind in [syntax.kind for syntax, _ in find_syntax(text)]
    found = notes(scenes=[f"in space, {text}", "at sea", f"{text} elsewhere"])
    assert kinds(found)[kind] >= 1 and "cat scenes[0]" in str(found.warnings[0])


@pytest.mark.parametrize(
    "text",
    [
        *("a cat (with a hat) in the snow", "a BLACK AND WHITE photo", "at 12:30 in the morning", "(scale 1:20)"),
        *("(at 12:30)", "a C++ programmer's desk", "night -- the moon", "a 3:2 frame", "a PRISON BREAK poster"),
        *("a snake_case_name", 'a sign that says "STOP AND GO"', "cat's [sic] ears", "he said: 5 apples", ">_< ^_^"),
        *("score_9, score_8_up", "a coffee break and tea", "Tom & Jerry <3", "chapter (part: two)", "(one: 2 cats)"),
        *("smile :) now", "wide [16:9]", "R AND B", "a cat — no dogs", "the year (c. 1900)", "$5.00 (five)"),
        *("a cat — style of Monet", "{x} in braces", "a <moss> cat", "1girl, hatsune miku (vocaloid)", "A AND B"),
        *("well-known, half-timbered", "3 + 4 = 7", "a cat... and a dog...", "“quoted”, ‘so’", "50% grey, #ff0000"),
    ],
)
def test_prose_is_left_alone(text: str) -> None:
    assert find_syntax(text) == []


@pytest.mark.parametrize("part", ["(", "(a:", "[:", "{|", "__a", "<lora:", "AND ", "((a", "aaa++", "[a:b:", "\\"])
def test_no_text_takes_long(part: str) -> None:
    began = time.process_time()
    find_syntax(part * (4000 // len(part)))
    assert time.process_time() - began < 0.5


def test_a_kind_is_one_line_with_a_count() -> None:
    found = notes(style="(masterpiece:1.2)", scenes=["(a:1.3)", "(b:1.3) and (c:1.4)", "in space"])
    assert kinds(found) == {"prompt-weight": 3}
    (line,) = found.lines()
    assert line.startswith("warning: ") and "cat style (and 2 more)" in line and '"(masterpiece:1.2)"' in line


def test_negative_prompts_are_looked_at_too() -> None:
    assert kinds(notes(settings={"negative_prompt": "(ugly:1.4), blurry"})) == {"prompt-weight": 1}
    assert kinds(notes(settings={"negative_prompt": "ugly " * 90})) == {"cut-prompt": 1}


def test_cut_prompts_are_told_with_what_is_lost() -> None:
    long = " ".join(["in a very large forest"] * 20) + " under a crescent moon"
    found = notes(scenes=[long, "in space", long + "light"])
    assert kinds(found) == {"cut-prompt": 2}
    (warning,) = found.warnings
    assert "by an estimate of CLIP's tokens" in warning.message and "first 75 tokens" in warning.message
    assert warning.example.startswith("lost is ") and "forest" in warning.example


def test_the_tokenizer_of_a_model_that_is_here_is_asked() -> None:
    reader = PromptReader("miniature")
    prompt = (
        "a drawing of a dragon in the forest at night with a red hat, in the city, on the beach, in the snow, in space"
    )
    end = reader.end(prompt)
    assert reader.measured and reader.visible == 22 and end is not None
    assert prompt[:end].startswith("a drawing of a dragon in the forest")
    scenes = [f"{prompt} dragon", "in the snow, " * 9 + "dragon"]
    found = notes(model="miniature", subject="", concept="dragon", scenes=scenes, anchors=["a dragon", "the dragon"])
    assert kinds(found) == {"cut-prompt": 2, "cut-concept": 1}


def test_the_words_that_are_lost_are_quoted_prompt_by_prompt() -> None:
    scenes = [*("in the snow, " * 9 + f"dragon {number}" for number in range(14)), "a dragon in space"]
    found = notes(model="miniature", subject="", concept="dragon", scenes=scenes, anchors=["a dragon", "the dragon"])
    cut = next(warning for warning in found.warnings if warning.kind == "cut-prompt")
    assert cut.count == 14 and "by an estimate" not in cut.message and "prompt_syntax: compel" in cut.message
    assert cut.example == 'lost is "snow, in the snow, in the snow, in the snow, dragon 0"'
    assert len(cut.others) == 9 and cut.others[3][0] == "dragon scenes[4]" and cut.others[3][1].endswith('dragon 4"')
    lines = found.lines()
    assert lines[1].startswith("  dragon scenes[1]: lost is") and "  and 4 more" in lines
    assert found.to_dict()["warnings"][0]["others"][3] == list(cut.others[3])


def test_only_an_estimate_is_called_one_and_a_quotation_has_an_end() -> None:
    found = notes(scenes=["moon " * 700 + "end"]).warnings[0]
    assert found.example.startswith('lost is about "moon') and "more characters" in found.example
    assert len(found.example) < 400


def test_all_that_is_read_as_plain_text_is_looked_at_and_compel_cuts_nothing() -> None:
    long = "in a very large forest " * 20
    scene = {"prompt": "in space", "prompt_2": long, "negative_prompt": long}
    settings = {"negative_prompt": long, "negative_prompt_2": long}
    (warning,) = notes(scenes=[scene], settings=settings).warnings
    places = [warning.where, *(where for where, _ in warning.others)]
    assert places == [
        *("settings.negative_prompt", "settings.negative_prompt_2"),
        *("cat scenes[0].prompt_2", "cat scenes[0].negative_prompt"),
    ]
    assert "cut-prompt" not in kinds(notes(scenes=[scene, long], settings={**settings, "prompt_syntax": "compel"}))


def test_a_single_file_is_read_with_the_tokenizer_of_its_configurations(tmp_path: Path) -> None:
    (folder := tmp_path / "tokenizer").mkdir()
    pieces = ["a", "b", "a</w>", "b</w>", "ab</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 5}')
    reader = PromptReader("acme.safetensors", str(tmp_path))
    assert reader.end("ab a b ab") == 6 and reader.measured
    assert PromptReader("acme.safetensors").visible == 75


def test_a_tokenizer_of_two_files_is_read_and_a_broken_one_is_not_in_the_way(tmp_path: Path) -> None:
    (folder := tmp_path / "tokenizer").mkdir()
    pieces = ["a", "b", "a</w>", "b</w>", "ab</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 5}')
    assert PromptReader(str(tmp_path)).end("ab a b ab") == 6
    (folder / "vocab.json").write_text("[")
    reader = PromptReader(str(tmp_path))
    assert not reader.measured and reader.end("ab a b ab") == 6
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1e30}')
    assert PromptReader(str(tmp_path)).visible == 75
    assert not PromptReader("x" * 5000).measured and not PromptReader("acme/xl\0").measured


def test_the_estimate_counts_as_clip_does() -> None:
    counted = {"a cat": 2, "it's 2024, isn't it?": 11, "extraordinarily": 2, "龙": 1, "hatsune miku (vocaloid), x": 6}
    assert {text: len(estimated_spans(text)) for text in counted} == counted


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"num_inference_steps": 3}, "unusual-num-inference-steps"),
        ({"num_inference_steps": 400}, "unusual-num-inference-steps"),
        ({"guidance_scale": 0}, "unusual-guidance-scale"),
        ({"guidance_scale": 1}, "unusual-guidance-scale"),
        ({"guidance_scale": 30}, "unusual-guidance-scale"),
        ({"height": 64, "width": 64}, "unusual-size"),
        ({"height": 4096, "width": 4096}, "unusual-size"),
        ({"height": 512, "width": 1600}, "unusual-size"),
        ({"mask_dropout": 1}, "unusual-mask-dropout"),
        ({"injection_alpha": 0}, "unusual-injection-alpha"),
        ({"sdsa": False, "injection": False}, "unusual-sdsa"),
        ({"lookahead": [451, 251]}, "unusual-lookahead"),
        ({"first_pass": "live", "lookahead_maps": 1}, "unusual-lookahead-maps"),
        ({"first_pass": "lookahead", "lookahead": [251], "lookahead_maps": 3}, "unusual-lookahead-maps"),
        ({"reuse_deep": [0.2, 2]}, "unusual-reuse-deep"),
        ({"reuse_deep": [0.5, 1]}, "unusual-reuse-deep"),
        ({"sdsa": False, "shared_every": 2}, "unusual-shared-every"),
        ({"guidance_interval": [0.4, 0.4]}, "unusual-guidance-interval"),
    ],
)
def test_unusual_settings_are_told(settings: dict[str, Any], kind: str) -> None:
    assert kinds(notes(settings=settings)) == {kind: 1}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_inference_steps": 30, "guidance_scale": 7.5},
        {"height": 832, "width": 1216},
        {"mask_dropout": 0},
        {"profile": "fast"},
        {"profile": "turbo", "num_inference_steps": 20},
        {"profile": "fast", "injection": False},
        {"reuse_deep": [0.33, 2], "guidance_interval": [0, 0.6]},
    ],
)
def test_usual_settings_are_not(settings: dict[str, Any]) -> None:
    assert not notes(settings=settings).warnings


def test_few_steps_are_usual_with_a_model_of_few_steps() -> None:
    assert not notes(model="acme/xl-turbo", settings={"num_inference_steps": 4, "guidance_scale": 0}).warnings


def test_half_precision_on_a_cpu_is_told(tmp_path: Path) -> None:
    for dtype, flag in (("float16", "amx_fp16"), ("bfloat16", "amx_bf16")):
        (cpuinfo := tmp_path / "cpuinfo").write_text("flags : fpu sse avx512f")
        assert "nine times slower" in str(half_on_cpu(dtype, cpuinfo))
        cpuinfo.write_text(f"flags : fpu {flag} sse")
        assert half_on_cpu(dtype, cpuinfo) is None
        assert half_on_cpu(dtype, tmp_path / "none") is not None
    assert half_on_cpu("float32") is None and half_on_cpu("auto") is None
    if half_on_cpu("float16"):
        assert "half-on-cpu" in kinds(notes("cpu", settings={"torch_dtype": "float16"}))
    assert "half-on-cpu" not in kinds(notes("cuda", settings={"torch_dtype": "float16"}))


def test_loose_concepts_are_told_once_for_each_subject() -> None:
    found = notes(subject="", concept=["loaf of bread", "macaron"],
                  anchors=["a loaf of warm bread, two macarons", "macarons, a loaf of bread"],
                  scenes=["delicate macarons", {"prompt": "a bread", "count": 3}, "a macaron"])  # fmt: skip
    loaf, macaron = found.concepts
    assert (loaf.subject, loaf.matched, loaf.lacking, loaf.pictures) == (
        loaf.subject,
        ("bread", "loaf … bread"),
        ("loaf",),
        4,
    )
    assert (macaron.matched, macaron.lacking, macaron.pictures) == (("macarons",), (), 3)
    assert f'{loaf.subject}: "loaf of bread" is matched by "bread" or "loaf … bread"' in found.lines()[0]


def test_the_command_line_tells_them_and_exits_with_0(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(
        "model: acme/xl\nsettings: {num_inference_steps: 3}\nsubjects:\n"
        "- {concept: macaron, id: m, subject: macarons, anchors: [a, b], scenes: ['(x:1.3)', y]}\n"
        "- {concept: cat, id: c, on_missing_concept: skip, anchors: [cat, cat b], scenes: [a dog, a cat]}\n"
    )
    for command in (["validate", job], ["plan", job, "-o", tmp_path / "out"]):
        argv = [str(word) for word in command]
        result = CliRunner().invoke(app, argv)
        assert result.exit_code == 0, result.output
        for told in ("warning: weights", "warning: fewer than ten steps", 'm: "macaron" is matched by "macarons"'):
            assert told in result.stdout
        assert 'nothing of "cat"' in result.stdout
        values = json.loads(CliRunner().invoke(app, [*argv, "--json"]).stdout)
        assert {item["kind"] for item in values["warnings"]} == {
            "prompt-weight", "unusual-num-inference-steps", "missing-concept",
        }  # fmt: skip
        assert all(set(item) == {"kind", "count", "where", "example", "message"} for item in values["warnings"])
        (matched,) = values["matched"]
        assert (matched["subject"], matched["concept"], matched["matched"]) == ("m", "macaron", ["macarons"])


def test_a_hundred_thousand_scenes_are_looked_at_quickly() -> None:
    scenes = [f"in the forest of tall trees number {number} and so on" for number in range(100_000)]
    job = parse_job({"name": "x", "model": "miniature", "subjects": [
        {"concept": "cat", "subject": "a cat", "anchors": ["a", "b"], "scenes": scenes}]})  # fmt: skip
    plan = make_plan(job)
    began = time.process_time()
    assert 4000 < kinds(job_notes(job, plan))["cut-prompt"] <= 5000
    assert time.process_time() - began < 6


COMMANDS = """
import json, sys
from consistory_ray.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv[1:] = words
    try:
        main()
    except SystemExit as ended:
        print("", ended.code, "", sep="\\0", flush=True)
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_no_encoding_of_the_terminal_ends_in_a_traceback(tmp_path: Path, encoding: str) -> None:
    """Five commands after each other: an error that none of them expects would end the process."""
    good, bad = tmp_path / "jöb 龙.yaml", tmp_path / "böse 龙.yaml"
    for job, concept in ((good, "龙"), (bad, "Katze")):
        job.write_text(
            f"name: Drache 龙 é\nmodel: acme/xl\nsubjects:\n- {{concept: {concept}, subject: 龙, anchors: [é, ü],"
            " scenes: ['(ß:1.3) 🐉', y]}\n",
            encoding="utf-8",
        )
    commands = [["validate", str(good)], ["validate", "--json", str(good)], ["plan", str(good)], ["schema"]]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps([*commands, ["validate", str(bad)]])],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    texts, codes = done.stdout.split(b"\0")[0::2], done.stdout.split(b"\0")[1::2]
    assert codes == [b"0"] * 4 + [b"2"], done.stderr
    assert texts[0].strip() and json.loads(texts[1].decode(encoding)) and json.loads(texts[3].decode(encoding))
