"""The page in Chromium, with real key presses: on a small output, and on 20,000 scenes.

CONSISTORY_REVIEW_SUBJECTS=2000 pytest -s -m slow tests/review -k thousand      # 100,000 of them, with figures
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consistory_ray.errors import StorageError
from consistory_ray.output.decisions import Decision, read_decisions, standing, write_decisions
from consistory_ray.output.index.parts import write_part
from consistory_ray.output.index.rows import rows_to_table
from consistory_ray.output.storage import OutputStore, open_output
from consistory_ray.review import desk as desk_module

from .conftest import asset_id

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]
Served = Callable[..., str]
SUBJECTS = int(os.environ.get("CONSISTORY_REVIEW_SUBJECTS", "400"))
"""Of fifty scenes each: 2000 make the 100,000 scenes that docs/assets.md speaks of."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def person(chromium: Any) -> Iterator[Callable[[str], Any]]:
    """``person(link)``: somebody's browser at the page, with all requests and errors noted on it."""
    contexts, pages = [], []

    def enter(link: str) -> Any:
        contexts.append(chromium.new_context(viewport={"width": 1280, "height": 800}))
        page = contexts[-1].new_page()
        page.errors, page.asked = [], []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(link)
        page.wait_for_selector(".cell.selected:not(.coming)")
        pages.append(page)
        return page

    yield enter
    for page in pages:
        assert all(re.match(r"http://127\.0\.0\.1:\d+/", url) for url in page.asked), "nothing is asked of anybody else"
    for context in contexts:
        context.close()


def until(page: Any, expression: str, seconds: float = 30) -> None:
    """Wait until an expression is true. Playwright's own way evaluates text in the page, which the page forbids."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"it never came to {expression}"
        page.wait_for_timeout(30)


def press(page: Any, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def saved(page: Any) -> None:
    until(page, "document.querySelector('#saving').textContent === '✓ saved'")


def state(page: Any, scene: str, subject: str = "cat-0") -> str:
    found: str = page.locator(f'.cell[aria-label^="{subject}, {scene},"]').get_attribute("data-state")
    return found


def selected(page: Any) -> str:
    found: str = page.locator(".cell.selected").get_attribute("aria-label")
    return found.rsplit(",", 1)[0]


def test_a_person_decides_by_keys(served: Served, output: OutputStore, person: Callable[[str], Any]) -> None:
    page = person(served(output))
    assert "token" not in page.url, "it does not stay in the address"
    assert page.inner_text("#title") == "the cats" and page.inner_text("#who") == "ada"
    assert page.locator(".cell").count() == 12 and selected(page) == "cat-0, scene-0"
    until(page, "[...document.querySelectorAll('.frame img[src]')].filter(i => i.naturalWidth === 48).length >= 11")

    press(page, "p")
    assert selected(page) == "cat-0, scene-1", "it goes on"
    press(page, "r", "t", "n")
    page.keyboard.type("p: ears, r: tail")  # letters are no keys while somebody types
    press(page, "Shift+Enter")
    page.keyboard.type("second line")
    press(page, "Enter")
    saved(page)
    assert [state(page, f"scene-{n}") for n in range(4)] == ["picked", "rejected", "reroll", "undecided"]
    decided = standing(read_decisions(output)[0])
    assert decided[asset_id(0, 0)].picked == asset_id(0, 0, 2), "the take with the best score was shown"
    assert decided[asset_id(0, 1)].rejected == {asset_id(0, 1)} and decided[asset_id(0, 2)].wanted_takes == {2}
    assert decided[asset_id(0, 3)].notes[0].note == "p: ears, r: tail\nsecond line"
    assert page.inner_text("#far-words") == "3 of 12 scenes decided"

    asked: list[Any] = []
    page.route("**/api/position?*", lambda route: asked.append(route))
    press(page, "u", "u")
    saved(page)
    deadline = time.monotonic() + 30
    while len(asked) < 2:
        assert time.monotonic() < deadline, "each undo asks where its scene is"
        page.wait_for_timeout(30)
    for one in reversed(asked):  # answers pass each other
        with page.expect_response("**/api/position?*"):
            one.continue_()
        page.wait_for_timeout(200)  # until the page has it, too
        until(page, "document.querySelector('.cell.selected').getAttribute('aria-label').startsWith('cat-0, scene-2')")
    page.unroute("**/api/position?*")
    assert state(page, "scene-2") == "undecided" and asset_id(0, 2) not in standing(read_decisions(output)[0])
    press(page, "Home")
    page.reload()
    page.wait_for_selector(".cell.selected:not(.coming)")
    assert state(page, "scene-0") == "picked"
    press(page, "u")  # nothing of this visit: the last one about the selected scene
    until(page, "document.querySelector('.cell.selected').dataset.state === 'undecided'")
    press(page, "End", "p")
    assert "no picture" in page.inner_text("#toasts") and state(page, "scene-3", "cat-2") == "failed"
    assert "out of luck" in page.locator(".cell.selected .reason").inner_text()
    assert not page.errors


def test_takes_side_by_side(served: Served, output: OutputStore, person: Callable[[str], Any]) -> None:
    page = person(served(output))
    press(page, "c")
    page.wait_for_selector("#compare[open]")
    figures = page.locator("#sides figure")
    assert figures.count() == 3 and "selected" in figures.nth(1).get_attribute("class"), "the shown one"
    until(page, "[...document.querySelectorAll('#sides img')].every(one => one.naturalWidth === 48)")
    assert page.locator(".anchors img").count() == 1
    press(page, "z")
    assert page.eval_on_selector_all("#sides img", "all => all.map(one => one.clientWidth)") == [48] * 3
    press(page, "z", "1", "r", "ArrowRight", "ArrowRight", "p")
    until(page, "document.querySelector('#compare-title').textContent.includes('scene-1')")  # it goes on
    saved(page)
    stands = standing(read_decisions(output)[0])[asset_id(0, 0)]
    assert stands.picked == asset_id(0, 0, 3) and stands.rejected == {asset_id(0, 0, 1)}
    press(page, "ArrowUp")
    until(page, "document.querySelectorAll('#sides figure').length === 3")
    assert page.locator("#sides figure.picked").count() == page.locator("#sides figure.rejected").count() == 1
    press(page, "Escape")
    assert (
        not page.locator("#compare").is_visible()
        and page.locator(".cell.selected").get_attribute("data-state") == "picked"
    )

    press(page, "ArrowRight", " ", "ArrowRight", " ", "Enter")  # of two scenes
    page.wait_for_selector("#compare[open]")
    assert page.inner_text("#compare-title") == "2 scenes" and figures.count() == 2
    press(page, "2", "p", "Enter")
    saved(page)
    assert state(page, "scene-2") == "picked"
    assert not page.errors


def test_filters_help_and_names(served: Served, output: OutputStore, person: Callable[[str], Any]) -> None:
    page = person(served(output))
    press(page, "?")
    assert page.locator("#help").is_visible()
    press(page, "p", "Escape")
    assert not page.locator("#help").is_visible() and not read_decisions(output)[0]
    press(page, "/")
    page.keyboard.type("cat-1 scene-2")
    until(page, "document.querySelectorAll('.cell').length === 1")
    page.wait_for_selector('.cell.selected[aria-label^="cat-1, scene-2,"]')
    assert "words=cat-1" in page.url
    press(page, "Enter", "p")
    saved(page)
    press(page, "Escape")
    until(page, "document.querySelectorAll('.cell').length === 12")
    page.wait_for_selector('.cell.selected[aria-label^="cat-1, scene-2,"]')  # what was selected stays so
    page.click("[data-only=picked]")
    until(page, "document.querySelectorAll('.cell').length === 1")
    page.click("[data-only=rejected]")
    page.wait_for_selector("#empty:not([hidden])")
    assert "No scene matches" in page.inner_text("#empty")
    page.click("#empty button")
    until(page, "document.querySelectorAll('.cell').length === 12")
    page.select_option("#sort", "worst")
    until(page, "document.querySelector('#cell-0').getAttribute('aria-label').includes('scene-1')")
    page.click("#who")
    page.keyboard.type("grace")
    press(page, "Enter")
    page.focus("#grid")
    press(page, "a", "r")
    saved(page)
    assert {one.who for one in read_decisions(output)[0]} == {"ada", "grace"}
    assert not page.errors


def test_what_others_decide_appears(served: Served, output: OutputStore, person: Callable[[str], Any]) -> None:
    page = person(served(output))
    other = asset_id(0, 2)
    write_decisions(output, [Decision(other, other, "cat-0", "scene-2", "reject", "bob")])
    until(page, "document.querySelector('#cell-2').dataset.state === 'rejected'")
    press(page, "ArrowRight", "ArrowRight")
    assert "bob" in page.inner_text("#strip")
    assert not page.errors


def test_what_is_not_saved_is_told_and_saved_later(
    served: Served, output: OutputStore, person: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = person(served(output))

    def fail(*_: Any) -> None:
        raise StorageError("the disk is on fire")

    with monkeypatch.context() as failing:
        failing.setattr(desk_module, "write_decisions", fail)
        press(page, "p", "r")
        page.wait_for_selector("#trouble:not([hidden])")
        assert "2 decisions are not saved: the disk is on fire" in page.inner_text("#trouble")
        assert page.inner_text("#saving") == "! 2 not saved" and not read_decisions(output)[0]
        assert page.locator(".cell.unsaved").count() == 2
    page.click("#trouble button")
    saved(page)
    assert page.locator("#trouble").is_hidden()
    assert [one.action for one in read_decisions(output)[0]] == ["pick", "reject"], "in order, each once"


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory, row: Callable[..., Any]) -> OutputStore:
    """Scenes of many subjects; all have one of five files."""
    store = open_output(Path(tmp_path_factory.mktemp("many")) / "out")
    files = [row(store, number, 0) for number in range(5)]
    rows = [
        replace(
            files[(subject + scene) % 5],
            **{"asset_id": asset_id(subject, scene), "subject": f"cat-{subject}", "scene": f"scene-{scene}"},
            prompt=f"a cat number {subject} at place {scene}",
        )
        for subject in range(SUBJECTS)
        for scene in range(50)
    ]
    unique = [replace(one, path=f"{one.path}#{number}") for number, one in enumerate(rows)]  # one row for each file
    write_part(store, rows_to_table(unique))
    return store


def test_twenty_thousand_scenes(served: Served, many: OutputStore, person: Callable[[str], Any]) -> None:
    began = time.monotonic()
    page = person(served(many))
    opened = time.monotonic() - began
    assert page.inner_text("#far-words") == f"0 of {50 * SUBJECTS:,} scenes decided"
    first = page.locator(".cell").count()
    assert 0 < first < 60
    press(page, "End")
    page.wait_for_selector(".cell.selected:not(.coming)")
    assert selected(page) == f"cat-{SUBJECTS - 1}, scene-49"
    most, frame = page.evaluate(
        """async () => {
          const grid = document.querySelector('#grid');
          let most = 0, last = performance.now();
          const frames = [];
          for (let step = 60; step >= 0; step--) {  // back to the top in steps, as a wheel does
            grid.scrollTop = grid.scrollHeight * step / 60;
            await new Promise(requestAnimationFrame);
            await new Promise(requestAnimationFrame);
            most = Math.max(most, document.querySelectorAll('.cell').length);
            frames.push((performance.now() - last) / 2);
            last = performance.now();
          }
          return [most, frames.sort((a, b) => a - b)[30]];
        }"""
    )
    assert most < 60, "however far somebody scrolls"
    print(f"{50 * SUBJECTS:,} scenes: open in {opened:.1f} s, a frame of scrolling {frame:.0f} ms")
    until(page, "!document.querySelector('.cell.coming')")
    assert page.locator("#cell-0").get_attribute("aria-label").startswith("cat-0, scene-0,")
    windows = [url for url in page.asked if "/api/window" in url]
    assert len(windows) < 70, "windows that were scrolled past are not asked for"
    press(page, *["PageDown"] * 5, "p")
    saved(page)
    (one,) = read_decisions(many)[0]
    assert one.action == "pick"
    press(page, "/")
    page.keyboard.type(f"cat-{SUBJECTS - 1} scene-4")
    until(page, "document.querySelectorAll('.cell').length === 11")
    assert not [told for told in page.errors if "502" not in told]
