"""The page in Chromium: keys, going back, going on after closing, and the file with the answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from consistory_ray.study.answers import read_answers, read_key
from consistory_ray.study.page import write_page
from consistory_ray.study.questions import make_study
from consistory_ray.study.runs import read_runs
from consistory_ray.study.strengths import preferences

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
KEYS = {"left": "ArrowLeft", "right": "ArrowRight", "tie": "ArrowDown"}
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """A Chromium with a profile that outlives its pages, and no network."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path / "profile",
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu"],
            accept_downloads=True,
        )
        context.set_offline(True)
        yield context
        context.close()


def download(page: Any, path: Path) -> dict[str, Any]:
    with page.expect_download() as waiting:
        page.click("#download")
    waiting.value.save_as(path)
    assert waiting.value.suggested_filename.startswith("answers-")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_person_answers(browser: Any, output: Callable[..., str], tmp_path: Path) -> None:
    folder = tmp_path / "study"
    runs = read_runs([output("ours"), output("theirs")])
    url = write_page(make_study(runs, seed=5), runs, folder).as_uri()
    key = read_key(folder)
    wanted = ["left" if one.left == "ours" else "right" for one in key.questions]
    wanted[1] = "tie"

    page, errors = browser.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(url)
    assert page.inner_text("#how-far") == f"0 of {len(wanted)}"
    shown = page.eval_on_selector_all("#left img, #right img", "all => all.map(one => one.naturalWidth)")
    assert len(shown) == 2 * len(key.questions[0].prompts)
    page.wait_for_function("[...document.querySelectorAll('figure img')].every(one => one.naturalWidth === 32)")
    page.keyboard.press("ArrowUp")  # means nothing
    page.keyboard.press(KEYS["left" if wanted[0] == "right" else "right"])  # a mistake
    page.keyboard.press("Backspace")
    page.keyboard.press(KEYS[wanted[0]])
    page.keyboard.press("2")
    page.click(f"#choose-{wanted[2]}")
    partly = download(page, tmp_path / "partly.json")
    assert [one["choice"] for one in partly["answers"]] == wanted[:3]
    page.close()

    page = browser.new_page()
    page.goto(url)
    assert page.inner_text("#how-far") == f"3 of {len(wanted)}", "it goes on after closing"
    for number in range(3, len(wanted)):
        assert page.is_visible("#asking") and not page.is_visible("#done"), number
        if key.questions[number].asks == "prompt":
            assert key.questions[number].prompts[0] in page.inner_text("#prompt")
        page.keyboard.press(KEYS[wanted[number]])
    assert page.is_visible("#done") and not page.is_visible("#asking")
    told = download(page, tmp_path / "answers.json")
    assert told["person"] == partly["person"] and [one["choice"] for one in told["answers"]] == wanted
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("#again")
    assert page.inner_text("#how-far") == f"0 of {len(wanted)}"
    assert download(page, tmp_path / "none.json")["person"] != told["person"], "somebody else"
    assert not errors

    found = preferences(read_answers([tmp_path / "answers.json"], key), key.runs, 100)
    assert {one.asks: (one.answers, one.ties) for one in found}[key.questions[1].asks][1] == 1
    assert all(next(iter(one.strengths)) == "ours" for one in found), "the answers arrive at the run that was meant"
