"""The log: its lines, its fields, and what it never says."""

from __future__ import annotations

import io
import json
import logging
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rich.console import Console

from consistory_ray.engine.events import (
    AssetDone,
    AssetFailed,
    Event,
    Notice,
    Pulse,
    RunFinished,
    RunSummary,
    WorkerReady,
)
from consistory_ray.engine.rendering import RendererSpec
from consistory_ray.errors import InputError, Problem
from consistory_ray.guards.redaction import HIDDEN, redacted
from consistory_ray.jobs.job import RenderJob
from consistory_ray.plan.plan import Asset, make_plan
from consistory_ray.testing import FakeRenderer
from consistory_ray.watch.logs import NAME, EventLog, LogLevel, both, log_to, logging_renderer, logging_run


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """The package's logger as it was, afterwards."""
    logger = logging.getLogger(NAME)
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


@pytest.fixture
def asset(make_job: Callable[..., RenderJob]) -> Asset:
    return next(make_plan(make_job()).assets())


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(text) for text in stream.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:pa55word@bucket/a", f"s3://{HIDDEN}@bucket/a"),
        ("https://user:p%40ss@example.org/x and more", f"https://{HIDDEN}@example.org/x and more"),
        (
            "https://acc.blob.core.windows.net/c/a?sv=2024&se=2026-01-01&sig=aB%2Bc%3D&sp=r",
            f"https://acc.blob.core.windows.net/c/a?sv=2024&se=2026-01-01&sig={HIDDEN}&sp=r",
        ),
        (
            "https://b.s3.amazonaws.com/a?X-Amz-Credential=AKIA%2F1&X-Amz-Date=1&X-Amz-Signature=ff00",
            f"https://b.s3.amazonaws.com/a?X-Amz-Credential={HIDDEN}&X-Amz-Date=1&X-Amz-Signature={HIDDEN}",
        ),
        ("X-Goog-Signature=abc'", f"X-Goog-Signature={HIDDEN}'"),
        ("{'token': 'abc', 'key': 'asset'}", f"{{'token': '{HIDDEN}', 'key': 'asset'}}"),
        ("AWS_SECRET_ACCESS_KEY=abc/def+1 next", f"AWS_SECRET_ACCESS_KEY={HIDDEN} next"),
        ("Authorization: Bearer abc.def-ghi_123", f"Authorization: Bearer {HIDDEN}"),
        ("with hf_abcdefghijklmnopqrstuvwxyz", f"with {HIDDEN}"),
        ("id AKIAABCDEFGHIJKLMNOP", f"id {HIDDEN}"),
    ],
)
def test_secrets_are_taken_out(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert redacted(shown) == shown, "a second time changes nothing"


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/run/images/cat-0/on-the-moon.png",
        "a tokenizer of 234 tokens",
        "me@example.org",
        "a design=flat one",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize("style", ["text", "json"])
def test_nothing_secret_gets_into_the_log_by_any_way(style: Any) -> None:
    stream = io.StringIO()
    log_to(stream, style=style, level="debug")
    log = logging.getLogger(f"{NAME}.somewhere")
    log.warning("reading %s", "s3://me:SECRET1@bucket/a")
    log.warning("reading", extra={"fields": {"url": "https://x/a?sig=SECRET2"}})
    try:
        raise OSError("cannot open https://x/a?X-Amz-Signature=SECRET3")
    except OSError:
        log.exception("failed with token=SECRET4")
    text = stream.getvalue()
    assert "SECRET" not in text
    assert text.count(HIDDEN) == 5 and "Traceback" in text


def test_one_line_per_asset_with_its_fields(asset: Asset) -> None:
    stream = io.StringIO()
    log_to(stream, style="json", level="info")
    log = EventLog("storybook")
    log(AssetDone(asset, 1.25, "worker-3", 2))
    log(AssetFailed(asset, "AssetError: too dark", "bad-asset", "worker-1", 1))
    log(Pulse(1, 1, 1, 0, 0))  # not worth a line at this level
    done, failed = lines(stream)
    fields = {"run": "storybook", "subject": "cat-0", "asset": asset.asset_id, "worker": "worker-3", "attempt": 2}
    assert fields.items() <= done.items()
    assert (done["level"], done["message"], done["seconds"]) == ("info", f"{asset.path} is done", 1.25)
    assert done["time"].endswith("+00:00") and done["logger"] == f"{NAME}.run"
    assert (failed["level"], failed["error"], failed["fault"]) == ("warning", "AssetError: too dark", "bad-asset")


def test_text_has_the_fields_at_its_end(asset: Asset) -> None:
    stream = io.StringIO()
    log_to(stream, level="info")
    EventLog("my book", assets_only=True)(AssetDone(asset, 1.25, "worker-3", 2))
    line = stream.getvalue().rstrip("\n")
    assert f'INFO {asset.path} is done  run="my book" subject=cat-0 asset={asset.asset_id}' in line
    assert line.endswith("seconds=1.250 worker=worker-3 attempt=2")


def test_the_rest_of_a_run(asset: Asset) -> None:
    summary = RunSummary("storybook", "/out", "complete", 12, 0, 12, 0, 3.5)
    story: list[Event] = [WorkerReady("worker-0", "here/1", 2.0), Notice("tried again"), RunFinished(summary)]
    stream = io.StringIO()
    log_to(stream, style="json", level="info")
    for event in story:
        both(EventLog("storybook"), EventLog("storybook", assets_only=True))(event)
    ready, notice, over = lines(stream)
    assert ready["worker"] == "worker-0" and ready["level"] == "info"
    assert (notice["message"], notice["level"]) == ("tried again", "warning")
    assert (over["state"], over["rendered"], over["url"]) == ("complete", 12, "/out")


@pytest.mark.parametrize(("level", "count"), [("warning", 1), ("info", 2), ("debug", 3)])
def test_levels(asset: Asset, level: LogLevel, count: int) -> None:
    stream = io.StringIO()
    log_to(stream, style="json", level=level)
    for event in (AssetDone(asset, 1.0, "worker-0"), AssetFailed(asset, "why"), Pulse(1, 1, 1, 0, 0)):
        EventLog("storybook")(event)
    assert len(lines(stream)) == count


def test_other_libraries_are_left_alone() -> None:
    stream = io.StringIO()
    log_to(stream, style="json", level="debug")
    logging.getLogger("somebody.else").error("not ours")
    assert not stream.getvalue()
    assert not logging.getLogger().handlers or logging.getLogger().handlers != logging.getLogger(NAME).handlers


def test_errors_for_people_are_lines_of_json_too() -> None:
    stream = io.StringIO()
    handlers = logging.getLogger(NAME).handlers
    error = InputError("the job is wrong", [Problem("model", "https://x/m?sig=SECRET", "give another")])
    with pytest.raises(InputError), logging_run(Console(file=stream), style="json", level="info"):
        raise error
    (line,) = lines(stream)
    assert (line["level"], line["message"], line["error"]) == ("error", "the job is wrong", "InputError")
    assert line["problems"] == [f"model: give another (got https://x/m?sig={HIDDEN})"]
    assert logging.getLogger(NAME).handlers == handlers, "afterwards everything is as it was"


def test_a_terminal_gets_the_log_above_its_display(asset: Asset) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=250, color_system=None)
    with logging_run(console, style="text", level="info"):
        EventLog("storybook", assets_only=True)(AssetDone(asset, 1.25, "worker-3", 2))
    assert f"{asset.path} is done" in stream.getvalue() and "worker=worker-3" in stream.getvalue()


def test_workers_log_as_the_coordinator_does(capsys: pytest.CaptureFixture[str]) -> None:
    factory = logging_renderer(FakeRenderer.factory(version=3), style="json", level="info", run="storybook")
    factory = pickle.loads(pickle.dumps(factory))
    renderer = factory(RendererSpec("fake", "cpu", "auto", 1))
    assert renderer.fingerprint == FakeRenderer(version=3).fingerprint
    logging.getLogger(f"{NAME}.consistory").info("loaded")
    (line,) = [json.loads(text) for text in capsys.readouterr().err.splitlines()]
    assert (line["run"], line["message"]) == ("storybook", "loaded")
    assert line["host"] and line["process"]
