"""Every option of the command line: what it takes, what it does, in which group of the help it stands.

The reference (docs/cli.md) is written from these. Defaults are those of RunOptions.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Optional

import typer
from typer.core import TyperCommand

from consistory_ray.engine.options import Device, KeepAnchors, RunOptions
from consistory_ray.guards.choices import CacheCodec, Profile
from consistory_ray.plan.casting import MAX_CANDIDATES
from consistory_ray.watch.logs import LogFormat, LogLevel

# ruff: noqa: UP045, older typers do not read the other spelling

DEFAULTS = RunOptions()

WHAT = "What"
WHERE = "Where it runs"
HOW_MANY = "How many"
MONEY = "What it costs"
FAILURES = "When it fails or is stopped"
LOGS = "Logs and metrics"

GONE = {
    "--fail-fast": "--max-failures 0 stops at the first failure",
    "--only-failed": "consistory-ray retry renders only what failed",
    "--verbose": "--log-level debug shows where in the code failures come from",
    "-v": "--log-level debug shows where in the code failures come from",
}


class RenderCommand(TyperCommand):
    """A command that says what to give instead of an option that is gone."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As of any command."""
        given = args[: args.index("--")] if "--" in args else args
        for name in given:
            if name in GONE:
                ctx.fail(f"No such option: {name}. {GONE[name]}.")
        return super().parse_args(ctx, args)


def batch_size(given: str) -> int | Literal["auto"]:
    """A value of ``--batch-size``."""
    if given == "auto":
        return "auto"
    if not given.isdecimal() or len(given) > 9 or int(given) < 1:
        raise typer.BadParameter(f"{given!a}: give 1, 2, … or auto")
    return int(given)


Job = Annotated[
    str,
    typer.Argument(metavar="JOB", help="Job file or URL: .yaml, .json, .csv or .parquet; - is standard input."),
]
ProfileOption = Annotated[
    Optional[Profile],
    typer.Option("--profile", help="What is saved on scenes, in the place of the job's profile.", rich_help_panel=WHAT),
]
Url = Annotated[str, typer.Argument(metavar="URL", help="An output.")]
UrlOrJob = Annotated[str, typer.Argument(metavar="URL-OR-JOB", help="An output, or a job file.")]
OutputOfJob = Annotated[
    Optional[str],
    typer.Option("--output", "-o", metavar="URL", help="Of a job file: its output; without it, out/NAME-OF-THE-JOB."),
]
Cache = Annotated[
    str,
    typer.Argument(metavar="CACHE", help="A stored subject's folder or URL, or the file of a cache, .safetensors."),
]
ProfileToPack = Annotated[Profile, typer.Option("--profile", help="Whose scenes the cache is for.")]
CodecOption = Annotated[
    Optional[CacheCodec], typer.Option("--codec", help="How it is packed; without it, as the profile says.")
]
PackedOutput = Annotated[
    Optional[str],
    typer.Option(
        "--output", "-o", metavar="URL", help="A folder for the new subject; of a cache that lies alone, a file."
    ),
]
InPlace = Annotated[
    bool,
    typer.Option(
        "--in-place", help="Replace the old cache. A run that goes on there makes the subject's anchors again."
    ),
]
Metrics = Annotated[
    Optional[str],
    typer.Option(
        metavar="NAME,...",
        help="judge, clip, dinov2, dreamsim, or package.module:Class of your own; without it the judge, for pictures "
        "of the bundled model.",
    ),
]
Weights = Annotated[
    Optional[list[str]],
    typer.Option(metavar="NAME=PLACE", help="A metric's weights: a folder or a Hugging Face id; may be repeated."),
]
Candidates = Annotated[
    int, typer.Option(min=2, max=MAX_CANDIDATES, help="Candidates for each subject, its own seeds among them.")
]
CastingMetric = Annotated[
    Optional[str],
    typer.Option(
        metavar="NAME",
        help="What scores the anchors: colours, clip, dinov2, dreamsim, or package.module:Class of your own; without "
        "it judge-2, for the bundled model.",
    ),
]
CastFile = Annotated[
    Optional[str],
    typer.Option("--to", metavar="FILE", help="The job that is written; without it, JOB.cast.yaml beside the job."),
]
CastingOutput = Annotated[
    Optional[str],
    typer.Option("--output", "-o", metavar="URL", help="Where candidates go; without it, out/NAME-OF-THE-JOB-casting."),
]
EvaluationDevice = Annotated[Device, typer.Option("--device", help="What metrics compute on.", rich_help_panel=WHERE)]
Urls = Annotated[list[str], typer.Argument(metavar="URL...", help="Two or more outputs of the same scenes.")]
PageFolder = Annotated[str, typer.Option("--to", metavar="FOLDER", help="A new folder for the page and its key.")]
RunNames = Annotated[
    Optional[list[str]],
    typer.Option("--name", metavar="NAME", help="What each run is called; without it, as where it lies."),
]
Asks = Annotated[
    Optional[list[str]],
    typer.Option("--ask", metavar="KIND", help="consistency (of sets) or prompt (of pictures); without it, both."),
]
Questions = Annotated[int, typer.Option("--questions", min=1, help="So many questions, at most.")]
StudySeed = Annotated[int, typer.Option("--seed", min=0, help="Of what is asked, in which order, on which side.")]
StudyTitle = Annotated[str, typer.Option("--title", help="Of the page.")]
StudyFolder = Annotated[str, typer.Argument(metavar="FOLDER", help="What `study` wrote: page and key.")]
AnswerFiles = Annotated[list[str], typer.Argument(metavar="FILE...", help="What people downloaded from the page.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

Output = Annotated[
    Optional[str],
    typer.Option(
        "--output",
        "-o",
        metavar="URL",
        help="Folder or fsspec URL; without it, out/NAME-OF-THE-JOB.",
        rich_help_panel=WHAT,
    ),
]
KeepAnchorsOption = Annotated[
    KeepAnchors,
    typer.Option(
        help="What stays of a subject's anchors once all of its scenes are done; auto: all, while the caches of the "
        "job take at most 100 GB together, else previews.",
        rich_help_panel=WHAT,
    ),
]
Gallery = Annotated[bool, typer.Option(help="Build the gallery at the end.", rich_help_panel=WHAT)]

Address = Annotated[
    Optional[str],
    typer.Option(
        help="Ray cluster: local, auto, HOST:PORT or ray://HOST:PORT; without it, $RAY_ADDRESS or local.",
        rich_help_panel=WHERE,
    ),
]
DeviceOption = Annotated[Device, typer.Option(help="What workers render on.", rich_help_panel=WHERE)]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Compile the network with torch.compile: minutes at each worker's start, for long runs on GPUs.",
        rich_help_panel=WHERE,
    ),
]
AcceleratorType = Annotated[
    Optional[str],
    typer.Option(
        metavar="NAME",
        help="Only on nodes with these accelerators, as Ray names them: H100, L4.",
        rich_help_panel=WHERE,
    ),
]
Labels = Annotated[
    Optional[list[str]],
    typer.Option(
        metavar="KEY=VALUE",
        help="Only on nodes with this Ray label; may be given several times.",
        rich_help_panel=WHERE,
    ),
]

Workers = Annotated[
    Optional[int],
    typer.Option(
        min=1, help="Number of workers; without it, one per GPU, on CPU one per machine.", rich_help_panel=HOW_MANY
    ),
]
MinWorkers = Annotated[
    int, typer.Option(min=1, help="Workers kept even if there is nothing left for them.", rich_help_panel=HOW_MANY)
]
CpusPerWorker = Annotated[
    Optional[float],
    typer.Option(help="CPUs that Ray reserves for a worker; without it, an even share.", rich_help_panel=HOW_MANY),
]
GpusPerWorker = Annotated[
    float, typer.Option(help="GPUs that Ray reserves for a worker; below 1 they are shared.", rich_help_panel=HOW_MANY)
]
BatchSize = Annotated[
    Optional[Any],
    typer.Option(
        parser=batch_size,
        metavar="N|auto",
        help="Scenes rendered together; without it, what the job says.",
        rich_help_panel=HOW_MANY,
    ),
]
Deterministic = Annotated[
    bool,
    typer.Option(
        "--deterministic",
        help="Fill every batch up to the batch size: on the same kind of device pictures are then bit for bit the same "
        "whatever they are rendered with.",
        rich_help_panel=HOW_MANY,
    ),
]
CacheBudget = Annotated[
    Optional[int],
    typer.Option(
        min=1,
        help="Bytes of anchor caches in memory at a time, at most; a machine takes what its object store holds.",
        rich_help_panel=HOW_MANY,
    ),
]

MaxFailures = Annotated[
    Optional[int],
    typer.Option(
        min=0,
        help="Stop once more pictures than that have failed, 0 at the first; without it, never.",
        rich_help_panel=FAILURES,
    ),
]
AcceptBelow = Annotated[
    bool,
    typer.Option(
        "--accept-below",
        help="End well although scenes have no take that passes the job's quality; their best takes are kept anyway.",
        rich_help_panel=FAILURES,
    ),
]
Grace = Annotated[
    float, typer.Option(min=0, help="Seconds that running batches get after Ctrl-C.", rich_help_panel=FAILURES)
]
StuckSeconds = Annotated[
    float,
    typer.Option(
        min=1, help="Least silence after which a worker may be found stuck and replaced.", rich_help_panel=FAILURES
    ),
]
OutageSeconds = Annotated[
    float,
    typer.Option(
        min=0,
        help="How long a run that has begun waits for an output that is out of reach.",
        rich_help_panel=FAILURES,
    ),
]
Submission = Annotated[
    Optional[str],
    typer.Option(
        metavar="ID",
        help="For schedulers that repeat whatever fails: a run of this id that ended with 1 or 2 is not repeated.",
        rich_help_panel=FAILURES,
    ),
]

SummaryAsJson = Annotated[bool, typer.Option("--json", help="Print the summary as JSON.", rich_help_panel=LOGS)]
LogFormatOption = Annotated[
    LogFormat,
    typer.Option(
        envvar="CONSISTORY_LOG_FORMAT",
        help="json: every line a JSON object, and no progress display.",
        rich_help_panel=LOGS,
    ),
]
LogLevelOption = Annotated[
    Optional[LogLevel],
    typer.Option(
        envvar="CONSISTORY_LOG_LEVEL",
        help="info: a line per picture; debug: also where in the code failures come from. Without it, warning, with "
        "json info.",
        rich_help_panel=LOGS,
    ),
]
MetricsPort = Annotated[
    Optional[int],
    typer.Option(
        min=0,
        max=65535,
        envvar="CONSISTORY_METRICS_PORT",
        help="Export Prometheus metrics there; 0 is off.",
        rich_help_panel=LOGS,
    ),
]
MetricsHost = Annotated[
    str,
    typer.Option(envvar="CONSISTORY_METRICS_HOST", help="Address at which metrics are exported.", rich_help_panel=LOGS),
]
PricePerGpuHour = Annotated[
    Optional[float],
    typer.Option(
        min=0,
        envvar="CONSISTORY_PRICE_PER_GPU_HOUR",
        help="Money for an hour of a GPU (on CPU: of a machine), in the place of the price file's: for forecasts, "
        "--max-cost and the cost metrics.",
        rich_help_panel=MONEY,
    ),
]
Prices = Annotated[
    Optional[str],
    typer.Option(
        metavar="FILE",
        envvar="CONSISTORY_PRICES",
        help="Your own prices, in place of cluster/prices.yaml, which are examples.",
        rich_help_panel=MONEY,
    ),
]
Spot = Annotated[bool, typer.Option("--spot", help="Prices are those of spot machines.", rich_help_panel=MONEY)]
Measured = Annotated[
    Optional[str],
    typer.Option(
        metavar="URL",
        help="How long pictures take is what they took in this output, on the same kind of device.",
        rich_help_panel=MONEY,
    ),
]
Deadline = Annotated[
    str,
    typer.Option(metavar="8h", help="Also say how many devices are done within 8h, 90m, 1d12h.", rich_help_panel=MONEY),
]
MaxCost = Annotated[
    Optional[float],
    typer.Option(
        help="Stop in order, with exit code 76, before the workers' hours cost more than that. Each run counts anew.",
        rich_help_panel=MONEY,
    ),
]
Renderer = Annotated[Optional[str], typer.Option(hidden=True, metavar="MODULE:NAME")]
RendererOptions = Annotated[str, typer.Option(hidden=True, metavar="JSON")]

Watch = Annotated[bool, typer.Option("--watch", "-w", help="Follow the run until it is over.")]
Interval = Annotated[float, typer.Option(min=0.1, help="Seconds between two looks with --watch.")]
AllThumbnails = Annotated[
    bool, typer.Option("--all-thumbnails", help="Of a large run, too: every picture is read once.")
]
Repair = Annotated[
    bool, typer.Option("--repair/--no-repair", help="Drop rows of damaged pictures, delete damaged files.")
]
Threads = Annotated[int, typer.Option(min=1, help="Files read at a time.")]
Split = Annotated[str, typer.Option(help="Name of the dataset's split.")]

ExaminedModel = Annotated[
    Optional[str],
    typer.Option(
        metavar="MODEL",
        help="What is measured: miniature (the bundled model), random (SDXL's size with random weights), or any other; "
        "without it, random on a GPU and miniature on a CPU, or what the job is like.",
    ),
]
ExaminedDtype = Annotated[
    Literal["auto", "float16", "bfloat16", "float32"],
    typer.Option(help="In which it computes; auto: float16 on a GPU, float32 on a CPU."),
]
ExaminedJob = Annotated[
    Optional[str], typer.Option("--job", metavar="JOB", help="Also forecast how long this job would take here.")
]
ExaminedOutput = Annotated[
    Optional[str],
    typer.Option(
        "--output", "-o", metavar="URL", help="Also write a small file there and delete it; of a job, its own output."
    ),
]
ExaminedSteps = Annotated[
    Optional[int], typer.Option(min=1, max=1000, help="Denoising steps that are measured; without it, 3 to 10.")
]
ExaminingSeconds = Annotated[
    float, typer.Option(min=0, help="After that many nothing more is begun that would take long.")
]
Quick = Annotated[bool, typer.Option("--quick", help="Two steps of single pictures only: whether it works at all.")]
