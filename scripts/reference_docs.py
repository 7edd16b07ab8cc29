"""Writes the references from what they describe, so that nothing is said twice by hand.

    docs/job-file.md     from scripts/job_file_page.md, the models in consistory_ray/jobs, the settings' defaults and
                         the columns of tables
    docs/cli.md          from the commands, options and exit codes in consistory_ray/cli

Usage: python scripts/reference_docs.py [--check]. With --check nothing is written, and the exit code says whether all
is current.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from typer.models import ArgumentInfo, CommandInfo, OptionInfo  # noqa: E402

from consistory_ray.cli.app import app  # noqa: E402
from consistory_ray.cli.common import EXIT_CODES  # noqa: E402
from consistory_ray.jobs.checks import MAX_PICTURES, MAX_TEXT  # noqa: E402
from consistory_ray.jobs.dynamic_checks import MAX_EXPANDED  # noqa: E402
from consistory_ray.jobs.job import RenderJob  # noqa: E402
from consistory_ray.jobs.readers import MAX_BYTES  # noqa: E402
from consistory_ray.jobs.render_settings import RenderSettings  # noqa: E402
from consistory_ray.jobs.subject import MAX_ANCHORS, MAX_CONCEPTS, MAX_COUNT, MAX_GIVEN  # noqa: E402
from consistory_ray.jobs.tables import COLUMNS  # noqa: E402
from consistory_ray.jobs.template_draws import MAX_CHAIN  # noqa: E402
from consistory_ray.jobs.templates import MAX_CHOSEN, MAX_DEPTH  # noqa: E402
from consistory_ray.jobs.wildcards import MAX_BYTES as LIST_BYTES  # noqa: E402
from consistory_ray.settings import BUNDLED_MODEL, MethodSettings, model_defaults  # noqa: E402

JOB_FILE = (ROOT / "scripts" / "job_file_page.md").read_text()

SETTINGS_HEAD = """\
{about}

Defaults are those of the paper; a model may bring its own in a file `consistory.json` beside its `model_index.json`, as
the bundled one does ({bundled}). Sections are the paper's.
"""

CLI = """\
# The command line

    consistory-ray COMMAND …         # or: python -m consistory_ray.cli COMMAND …

{commands}

`-h` after any command prints what is said here. JOB is a [job file](job-file.md): a path, any fsspec URL, or `-` for
standard input. URL is an output: a folder or any fsspec URL. `--json` prints one JSON document on standard output; a
render's progress and all errors go to standard error.

This file is written by `scripts/reference_docs.py`; change `consistory_ray/cli/options.py` and the commands' docstrings
instead.

## Exit codes

| Code | Means |
|---|---|
{codes}

## Environment

| Variable | What it does |
|---|---|
{environment}

Variables that stand in for an option are named with it below.

{sections}"""

ENVIRONMENT = {
    "`CONSISTORY_ALLOWED_CODE`": "Comma-separated `package.module:function` or modules that jobs may name as `checks`; "
    "unset allows none ([evaluation.md](evaluation.md)). Where it is set, `export --check` and `--watermark` may name "
    "no others.",
    "`CONSISTORY_ALLOWED_URLS`": "Comma-separated prefixes: jobs, models, outputs and stored subjects anywhere else "
    "are refused ([security.md](security.md)).",
    "`CONSISTORY_SUBJECTS`": "Folder or URL in which `from: NAME` is looked up.",
    "`RAY_ADDRESS`": "The Ray cluster to join where `--address` is not given.",
    "`HF_TOKEN`, `HF_HOME`, `HF_HUB_OFFLINE`": "Of the Hugging Face hub, for models that are given by their id.",
}
TITLES = {
    "RenderJob": "The job",
    "RenderSettings": "Settings",
    "Quality": "The gate",
    "Subject": "A subject",
    "Anchor": "An anchor",
    "GivenPicture": "A given picture",
    "Scene": "A scene",
    "Control": "A control",
    "Pose": "A pose",
    "ControlNet": "A ControlNet",
    "LoRA": "A LoRA",
    "Embedding": "An embedding",
}
TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "object": "mapping",
}
LAYOUTS = {
    ".yaml": "YAML, or ConsiStory+",
    ".yml": "YAML, or ConsiStory+",
    ".json": "JSON, or ConsiStory+",
    ".csv": "a table of prompts, with any separator",
    ".tsv": "a table of prompts, separated by tabs",
    ".parquet": "a table of prompts",
}


def job_page() -> str:
    """docs/job-file.md."""
    schema = RenderJob.model_json_schema()
    models = {"RenderJob": schema, **schema["$defs"]}
    return JOB_FILE.format(
        endings=_rows((f"`{ending}`", LAYOUTS[ending], f"{size >> 20} MiB") for ending, size in MAX_BYTES.items()),
        sections="\n".join(_model_section(name, title, models[name]) for name, title in TITLES.items()),
        columns=_rows((f"`{name}`", text) for name, text in COLUMNS.items()),
        text=f"{MAX_TEXT:,}",
        pictures=f"{MAX_PICTURES:,}",
        anchors=MAX_ANCHORS,
        given=MAX_GIVEN,
        concepts=MAX_CONCEPTS,
        count=f"{MAX_COUNT:,}",
        depth=MAX_DEPTH,
        chosen=MAX_CHOSEN,
        chain=MAX_CHAIN,
        lists=LIST_BYTES >> 20,
        expanded=f"{MAX_EXPANDED:,}",
    )


def _model_section(name: str, title: str, model: dict[str, Any]) -> str:
    """A model's keys as a table."""
    about = plain(model.get("description", ""))
    if name == "RenderSettings":
        paper, bundled = MethodSettings().to_dict(), model_defaults(BUNDLED_MODEL).to_dict()
        others = ", ".join(f"`{key}: {_value(bundled[key])}`" for key in paper if bundled[key] != paper[key])
        about = SETTINGS_HEAD.format(about=plain(inspect.getdoc(RenderSettings) or "").split("\n")[0], bundled=others)
        defaults: dict[str, Any] = paper
    else:
        defaults = {}
    rows = []
    for key, field in model["properties"].items():
        default = defaults.get(key, field.get("default"))
        shown = "**needed**" if key in model.get("required", ()) else _default(default, key in defaults)
        if name == "Subject" and key in ("concept", "anchors"):
            shown = "**needed**, without `from`" + (" or `pictures`" if key == "anchors" else "")
        rows.append((f"`{key}`", kind(field), shown, plain(field["description"])))
    table = f"| Key | Type | Default | What it is |\n|---|---|---|---|\n{_rows(rows)}\n"
    return f"### {title}\n\n{about}\n\n{table}".replace("\n\n\n", "\n\n")


def kind(schema: dict[str, Any]) -> str:
    """What values a JSON schema allows, in words."""
    if "anyOf" in schema:
        found = (kind(item) for item in schema["anyOf"] if item.get("type") != "null")
        return " or ".join(text for text in dict.fromkeys(found) if text)
    if "$ref" in schema:
        title = TITLES.get(name := schema["$ref"].rpartition("/")[2], "")
        return f"[{title.removeprefix('A ').removeprefix('An ').lower()}](#{_anchor(title)})" if title and name else ""
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        if items := schema.get("prefixItems"):
            kinds = list(dict.fromkeys(map(kind, items)))
            return f"list of {len(items)}: {'; '.join(kinds)}"
        each = kind(schema["items"])
        return f"list of {each}" if each else ""
    return TYPES[schema["type"]] + _range(schema)


def _range(schema: dict[str, Any]) -> str:
    least, most, above = (schema.get(name) for name in ("minimum", "maximum", "exclusiveMinimum"))
    words = []
    if least is not None and most is not None:
        words.append(f", {_number(least)} to {_number(most)}")
    elif above is not None and most is not None:
        words.append(f" above {_number(above)}, up to {_number(most)}")
    elif least is not None:
        words.append(f" from {_number(least)}")
    if "maxLength" in schema:
        words.append(f", at most {schema['maxLength']} characters")
    if "multipleOf" in schema:
        words.append(f", a multiple of {schema['multipleOf']}")
    return "".join(words)


def _number(value: float) -> str:
    return "2^63-1" if value == 2**63 - 1 else f"{value:,}"


def _default(value: Any, is_setting: bool) -> str:
    return f"`{_value(value)}`" if is_setting or value not in (None, "", {}, []) else ""


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def plain(text: str) -> str:
    """A docstring's text as Markdown, on as many lines as it has paragraphs."""
    text = re.sub(r":(?:class|func|mod|meth|data):`~?(?:[\w.]*\.)?(\w+)(?:\(\))?`", r"`\1`", text)
    paragraphs = [" ".join(part.split()) for part in text.replace("``", "`").split("\n\n")]
    return "\n".join(paragraphs)


@dataclass(frozen=True)
class Parameter:
    """A command's argument or option: its name in the code, its type, what typer is told of it, and its default."""

    name: str
    type: Any
    info: Any
    default: Any


def parameters(command: CommandInfo) -> list[Parameter]:
    """Those that are not hidden."""
    function = inspect.unwrap(command.callback)  # type: ignore[arg-type]
    defaults = inspect.signature(function).parameters
    found = []
    for name, hint in get_type_hints(function, include_extras=True).items():
        if get_origin(hint) is Annotated and not (info := hint.__metadata__[0]).hidden:
            given = [part for part in get_args(hint.__origin__) if part is not type(None)]
            optional = type(None) in get_args(hint.__origin__)
            kind_of = given[0] if optional else hint.__origin__
            found.append(Parameter(name, kind_of, info, defaults[name].default))
    return found


def cli_page() -> str:
    """docs/cli.md."""
    commands = {info.name or info.callback.__name__: info for info in app.registered_commands if info.callback}
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, command in commands.items():
        line = (f"[`{name}`](#{name})", plain(_help(command)).split("\n")[0])
        groups.setdefault(str(command.rich_help_panel), []).append(line)
    return CLI.format(
        commands="\n\n".join(f"| {title} | |\n|---|---|\n{_rows(lines)}" for title, lines in groups.items()),
        environment=_rows(ENVIRONMENT.items()),
        codes=_rows((str(code), text) for code, text in EXIT_CODES.items()),
        sections="\n".join(_command_section(name, command) for name, command in commands.items()),
    )


def _help(command: CommandInfo) -> str:
    return command.help or inspect.getdoc(command.callback) or ""


def _command_section(name: str, command: CommandInfo) -> str:
    arguments = [item for item in parameters(command) if isinstance(item.info, ArgumentInfo)]
    usage = " ".join(["consistory-ray", name, *(str(item.info.metavar) for item in arguments)])
    usage += " [OPTIONS]" if parameters(command) else ""
    parts = [f"## {name}", "\n\n".join(plain(_help(command)).split("\n")), f"    {usage}"]
    parts += [f"{item.info.metavar}: {item.info.help}" for item in arguments]
    if name == "retry":
        return "\n\n".join([*parts, "Options are those of [render](#render).\n"])
    groups: dict[str, list[Parameter]] = {"": []}
    for item in parameters(command):
        if isinstance(item.info, OptionInfo):
            groups.setdefault(item.info.rich_help_panel or "", []).append(item)
    for title, options in ((title, options) for title, options in groups.items() if options):
        heading = f"**{title}**\n\n" if title else ""
        rows = _rows(map(_option_row, options))
        parts.append(f"{heading}| Option | Takes | Default | What it does |\n|---|---|---|---|\n{rows}")
    return "\n\n".join(parts) + "\n"


def _option_row(option: Parameter) -> tuple[str, str, str, str]:
    info, name = option.info, option.name.replace("_", "-")
    given = [text for text in (info.default, *(info.param_decls or ())) if isinstance(text, str)]
    usual = [f"--{name}/--no-{name}" if option.type is bool else f"--{name}"]
    names = [part for each in (given or usual) for part in each.split("/")]
    value = option.default
    if isinstance(value, bool):
        default = names[0 if value else 1] if any("/" in each for each in given or usual) else ""
    else:
        default = "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    default = "must be given" if value is inspect.Parameter.empty else default
    variable = f" Environment: `{info.envvar}`." if info.envvar else ""
    shown = default if value is inspect.Parameter.empty else f"`{default}`" if default else ""
    return ", ".join(f"`{each}`" for each in names), _taken(option), shown, f"{info.help}{variable}"


def _taken(option: Parameter) -> str:
    """What values an option takes."""
    if option.type is bool:
        return ""
    if option.info.metavar:
        return str(option.info.metavar).replace("|", " or ")
    if get_origin(option.type) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(option.type))
    schema = {"minimum": option.info.min, "maximum": option.info.max}
    number = {int: "whole number", float: "number", str: "text"}[option.type]
    return number + _range({key: value for key, value in schema.items() if value is not None})


def _rows(rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def examples(page: str) -> Iterator[tuple[str, str]]:
    """Language and text of every example in a page."""
    for match in re.finditer(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        yield match[1], match[2]


def derived_files() -> dict[Path, str]:
    """Path and wanted content of everything this script writes."""
    return {ROOT / "docs" / "job-file.md": job_page(), ROOT / "docs" / "cli.md": cli_page()}


def main() -> int:
    stale = {path: text for path, text in derived_files().items() if not path.exists() or path.read_text() != text}
    for path, text in stale.items():
        print(("stale: " if "--check" in sys.argv else "wrote ") + str(path.relative_to(ROOT)))
        if "--check" not in sys.argv:
            path.write_text(text)
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
