"""Writes the references from what they describe, so that nothing is said twice by hand.

    docs/job-file.md     from the models in consistory_ray/jobs/job.py, the settings' defaults and the tables' columns
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
from consistory_ray.jobs.job import MAX_ANCHORS, MAX_CONCEPTS, MAX_COUNT, MAX_GIVEN, RenderJob, RenderSettings  # noqa: E402
from consistory_ray.jobs.readers import MAX_BYTES  # noqa: E402
from consistory_ray.jobs.tables import COLUMNS  # noqa: E402
from consistory_ray.settings import BUNDLED_MODEL, MethodSettings, model_defaults  # noqa: E402

JOB_FILE = """\
# The job file

What to render: subjects, each an individual with anchors that fix what it looks like and scenes that follow them. A
prompt is style + subject + scene. `consistory-ray validate JOB` says everything that is wrong with a job at once,
`consistory-ray schema` prints this reference as a JSON schema for editors, and
[`pipelines/`](../pipelines/README.md) has an example of each layout.

The layouts, told apart by the file's ending and content:

| Ending | Layout | At most |
|---|---|---|
{endings}

Each may be a path or any fsspec URL, and packed with gzip (`.yaml.gz`). `-` is standard input, in any of the layouts. A
folder `prompts.parquet/` of part files is one table.

This file is written by `scripts/reference_docs.py`; change the docstrings of the models in `consistory_ray/jobs/job.py`
instead.

## YAML and JSON

```yaml
name: quickstart
model: miniature
settings: {{num_inference_steps: 50, seed: 7}}
subjects:
  - id: moss-dragon
    concept: dragon
    style: "a drawing of"
    subject: "a dragon"
    anchors: ["in the forest", {{prompt: "on the beach", seed: 11}}]
    scenes: ["in space", {{id: night-city, prompt: "in the city at night", seed: 3, count: 2}}]
```

The same in JSON:

```json
{{
  "name": "quickstart",
  "settings": {{"num_inference_steps": 50, "seed": 7}},
  "subjects": [
    {{"id": "moss-dragon", "concept": "dragon", "style": "a drawing of", "subject": "a dragon",
     "anchors": ["in the forest", "on the beach"], "scenes": ["in space"]}}
  ]
}}
```

YAML follows its 1.2 core schema: `no` and `12:30` are texts. A key that is not listed here, and one that occurs twice,
is an error. Texts are at most {text} characters, put into Unicode's form NFC, their blanks made single.

{sections}
## A subject of whom there are pictures

One to eight `pictures` take the place of `anchors`: the subject's own picture in other places and poses, so that what
stays the same is the subject. A caption (style, subject and `prompt`) says where it is there and nothing of how it
looks.

```yaml
subjects:
  - concept: dragon
    style: a drawing of
    subject: a dragon
    details: a spotted dragon with a hat
    pictures:
      - {{image: mia-1.png, prompt: in the forest}}
      - {{image: mia-2.webp, prompt: at sunset, mask: mia-2-mask.png}}
    scenes: [on the beach, in the snow]
```

* **Words.** Colours come over by themselves. A pattern, an accessory and whatever else a scene's layout has to make
  room for come if the scene's words name them: that is what `details` is for. Text that follows the subject is enough
  ("with a hat"); text that names the concept ("a spotted dragon with a hat") takes the place of the subject's. The
  colours need no words. `mask_dropout: 0` under `settings` keeps scenes closest to the pictures.
* **Files.** PNG, JPEG and WebP, at a path or any fsspec URL in the places that `CONSISTORY_ALLOWED_URLS` allows. A
  relative path begins at the job file; in a job that is no file (standard input, Python) at the working directory.
  Orientation, colour profiles, palettes, CMYK and 16 bits are taken care of. A file has 256 MiB and a picture 128
  megapixels (a WebP 64) at most, and what is larger than 16 megapixels is reduced when it is opened. Pictures that
  are broken, animated, of a single colour or smaller than 8 pixels are refused before a model is loaded, all of them
  at once.
* **Masks.** Where the subject is, is found. A picture with transparency says it itself, and a `mask` (subject white,
  all else black, of the picture's size) wins over both. The gallery shows what was taken for the subject; if nothing
  was found, the subject fails before any of its scenes is rendered, and if it is doubtful, the run tells it.
* **Shape.** `fit: crop` cuts a picture to the shape of the job's, around the subject where a mask says where that is;
  `fit: letterbox` keeps all of it.
* **Content decides.** A subject is known by the SHA-256 of its files: the same bytes at another address are the same
  subject, another file is another one. The output gets a copy of each below `inputs/`. From then on a run goes on by
  the job in its `run.json`, even if the originals are gone.

On a cluster give URLs: a job file that travels in a ConfigMap has no folder that relative paths could begin at.

## Poses and layouts: hints for a ControlNet

A ControlNet leads the layout of pictures by hints: an outline, a silhouette, a pose, a depth map, whatever it was
trained for. `controlnets` names the networks, `control` a hint for one picture, `poses` hints that all of a subject's
scenes are rendered with. Who the subject is still comes from its anchors.

```yaml
controlnets: [miniature]              # or xinsir/controlnet-openpose-sdxl-1.0, a folder, a file
subjects:
  - concept: dragon
    style: a drawing of
    subject: a dragon
    anchors: ["in the forest", "on the beach"]
    scenes: ["in the snow", "at sunset"]
    poses: {{folder: poses/dragon, scale: 0.8}}   # sitting.png, flying.png: 2 x 2 pictures
  - concept: cat
    subject: a cat
    anchors: ["in the meadow", "in the kitchen"]
    scenes:
      - in space
      - {{prompt: in the snow, control: cat.png}}
      - {{prompt: at sunset, control: {{image: photo.jpg, preprocess: canny, end: 0.6}}}}
```

* **Poses.** Every scene is rendered in every pose, called `in-the-snow.sitting`, with the scene's own seed; `validate`
  and `plan` say how many pictures that makes. A scene's own `control` leads it beside the pose. A folder's PNG, JPEG
  and WebP files are taken in the order of their names, which the poses are called by. A pose that is added later
  changes nothing of the others.
* **Hints.** Files, addresses and limits as for [given pictures](#a-subject-of-whom-there-are-pictures). A hint is as
  the network was trained to see it (usually white or coloured on black), of any size, and cut to the shape of the
  job's pictures. From something else `preprocess` makes it: `canny` the edges of a photo, `invert` white on black of
  black on white, `silhouette` and `outline` the shape of what is opaque, or stands out from a plain background.
* **How strongly.** `scale` and, from `start` to `end`, the share of the steps. Layouts are decided early: `end: 0.6`
  leaves details to the words.
* **Networks.** `ControlNetModel` and `ControlNetUnionModel` of diffusers, several at once; a control names one by its
  place or its `name` under `net`, and a union's kind of hint under `mode`. One for another architecture than the
  model's is refused before anything is loaded, where the files are on this machine. Each costs memory in every worker,
  and about half as much time again for the pictures that it leads.
* **Content decides.** A led picture's id holds the SHA-256 of its hints, their settings and the network's weights; the
  anchors and their cache know nothing of the hints of scenes, so new poses of a finished subject only render new
  scenes. A hint of an anchor belongs to the subject. The index's column `control` and the pictures' own metadata say
  what has led each; the gallery shows it below the picture.

The bundled network follows filled silhouettes and outlines in white, and coloured skeletons; `pipelines/poses.yaml` has
hints of all three.

## A subject that an earlier run has stored

A subject that was rendered once can be taken up by any later job: the same individual, new scenes. `from` names its
folder below `anchors/`, or only the folder's name where the environment variable `CONSISTORY_SUBJECTS` says where such
folders lie. Its concept, anchors and settings are stored with it; a job that sets others is refused.

```yaml
subjects:
  - from: out/quickstart/anchors/moss-dragon
    scenes: ["in the rain", "by the volcano"]
```

Subjects of different runs can meet in the same pictures. They are one subject then, with the concepts and the anchors
of all of them in the order of the list, which is part of what decides the pictures; a scene may name any of them.

```yaml
subjects:
  - from: [out/quickstart/anchors/moss-dragon, out/friends/anchors/tin-robot]
    scenes: ["in the rain", {{prompt: by the volcano, count: 4}}]
```

Left out, `subject` is "a dragon and a robot", `style` that of both, `id` moss-dragon-and-tin-robot. They must have been
made by the same model with the same settings, in the same precision, and be called differently: a cat and a cat cannot
be told apart, so one of them has to be made as, say, a `red cat`. Three or more work too. Those who were made together
stay themselves better than those who meet ([how much](../README.md#several-subjects)).

Jobs whose anchor caches take more than 100 GB in all keep them only with `--keep-anchors all`.

## Tables: CSV and Parquet

One row is one anchor or scene. Only `prompt` and `concept` are needed, and an empty cell is the same as none.

| Column | What it holds |
|---|---|
{columns}

Rows with one `subject_id` are one subject, and need the subject's columns only once. Without that column rows with
equal `concept`, `style` and `subject` are one. The order of rows matters only where no row of a subject has a `kind`:
add that column before you sort a table. Names of columns may be written in capitals; an unknown column is left out, one
that looks like a misspelt one is an error. A table has neither model nor settings: its job is called like the file and
rendered by the bundled model with that model's own settings.

```csv
subject_id,concept,style,subject,prompt,kind,id,seed,count
pond-snail,snail,a drawing of,a snail,in the meadow,anchor,,,
pond-snail,,,,in the forest,anchor,,,
pond-snail,,,,at sunset,scene,evening,12,2
ice-penguin,penguin,a drawing of,a penguin,in the snow,,,,
ice-penguin,,,,on the beach,,,,
ice-penguin,,,,in the kitchen,,,,
```

Cells are separated by commas, semicolons, tabs or bars, whichever the header has. In Parquet `concept` may be a list:

```python
import pyarrow as pa
import pyarrow.parquet as pq

prompts = ["in the meadow", "in the forest", "at sunset"]
rows = [{{"concept": ["snail"], "style": "a drawing of", "subject": "a snail", "prompt": prompt}} for prompt in prompts]
pq.write_table(pa.Table.from_pylist(rows), "prompts.parquet")
```

## The layout of the ConsiStory+ benchmark

A mapping of category to subjects, in YAML or JSON. The first two `settings` of a subject are its anchors. `name`,
`model`, `on_missing_concept` and a *mapping* of `settings` may stand beside the categories; a subject may have an `id`
and an `on_missing_concept` of its own.

```yaml
name: consistory-plus-sample
settings: {{seed: 5}}
animals:
  - subject: "a sleepy red panda"
    concept_token: panda
    style: "a hyper-realistic photo of"
    settings: ["curled up on a mossy branch", "nibbling bamboo in the rain", "peeking out of a wooden crate"]
```

## Limits

A job has at most {pictures} pictures, a subject {anchors} anchors, {given} given pictures and {concepts} concepts, a
scene a `count` of
{count}.
"""

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
    "`CONSISTORY_ALLOWED_URLS`": "Comma-separated prefixes: jobs, models, outputs and stored subjects anywhere else "
    "are refused ([security.md](security.md)).",
    "`CONSISTORY_SUBJECTS`": "Folder or URL in which `from: NAME` is looked up.",
    "`RAY_ADDRESS`": "The Ray cluster to join where `--address` is not given.",
    "`HF_TOKEN`, `HF_HOME`, `HF_HUB_OFFLINE`": "Of the Hugging Face hub, for models that are given by their id.",
}
TITLES = {
    "RenderJob": "The job",
    "RenderSettings": "Settings",
    "Subject": "A subject",
    "Anchor": "An anchor",
    "GivenPicture": "A given picture",
    "Scene": "A scene",
    "Control": "A control",
    "Pose": "A pose",
    "ControlNet": "A ControlNet",
}
TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
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
            return f"list of {len(items)}: {kind(items[0])}"
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
    variable = f" Environment: `{info.envvar}`." if info.envvar else ""
    shown = f"`{default}`" if default else ""
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
