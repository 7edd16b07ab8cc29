"""The commands that ask people: ``study`` writes the page, ``preferences`` reads what they answered."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from consistory_ray.cli.common import exits, out, print_json
from consistory_ray.cli.options import (
    AnswerFiles,
    AsJson,
    Asks,
    PageFolder,
    Questions,
    RunNames,
    StudyFolder,
    StudySeed,
    StudyTitle,
    Urls,
)
from consistory_ray.errors import InputError, Problem
from consistory_ray.jobs.allowlist import check_allowed
from consistory_ray.watch.reports import line


@exits
def study(
    urls: Urls,
    to: PageFolder,
    names: RunNames = None,
    asks: Asks = None,
    questions: Questions = 60,
    seed: StudySeed = 0,
    title: StudyTitle = "Which one?",
    as_json: AsJson = False,
) -> None:
    """Write a page that asks people which of two runs they prefer, without saying which is which.

    The folder `page` is what they get: static files, answered by keyboard or mouse, that load and send nothing. Answers
    are downloaded as a file, which `consistory-ray preferences` reads together with `key.json`.
    """
    from consistory_ray.study.page import write_page
    from consistory_ray.study.questions import ASKS, make_study
    from consistory_ray.study.runs import read_runs

    for url in urls:
        check_allowed("URL", url)
    if "://" in to:
        raise InputError("the page cannot be written", [Problem("--to", to, "give a folder of this machine")])
    runs = read_runs(urls, names or ())
    unknown = [asked for asked in asks or () if asked not in ASKS]
    if unknown:
        raise InputError("there is no such question", [Problem("--ask", unknown[0], f"use {' or '.join(ASKS)}")])
    made = make_study(runs, tuple(asked for asked in ASKS if asked in (asks or ASKS)), seed, questions)
    page = write_page(made, runs, Path(to), title)
    if as_json:
        counts = {asked: sum(question.asks == asked for question in made.questions) for asked in ASKS}
        print_json({"study": made.id, "page": str(page), "runs": made.runs, "questions": counts})
    else:
        line(out, f"{len(made.questions)} questions about {', '.join(made.runs)}: {page}")


@exits
def preferences(folder: StudyFolder, files: AnswerFiles, as_json: AsJson = False) -> None:
    """Say which run people prefer: Bradley-Terry strengths with 95 % intervals, from the files they sent back.

    Needs the extra `study`. "No difference" is half a win for either side; intervals draw people and questions again.
    """
    from consistory_ray.study.answers import read_answers, read_key
    from consistory_ray.study.strengths import preferences as preferred

    key = read_key(Path(folder))
    found = preferred(read_answers([Path(file) for file in files], key), key.runs)
    if as_json:
        print_json({"study": key.id, "found": [one.to_dict() for one in found]})
        return
    for one in found:
        said = f"{one.asks}: {one.answers} answers of {one.people} people to {one.questions} questions, {one.ties} ties"
        line(out, said + ("" if one.left_share is None else f", {100 * one.left_share:.0f} % left"), "bold")
        table = Table("run", "strength", "95 % interval", box=None)
        for name, (value, low, high) in one.strengths.items():
            table.add_row(name, f"{value:+.2f}", f"{low:+.2f} to {high:+.2f}")
        out.print(table)
        for (run, other), (value, low, high) in one.preferred.items():
            bounds = f"{100 * value:.0f} % ({100 * low:.0f} to {100 * high:.0f} %)"
            line(out, f"{run} is preferred to {other} with probability {bounds}")
