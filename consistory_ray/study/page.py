"""The page: static files that anybody can open or be sent, with nothing in them that says which run is which.

    FOLDER/page/index.html      the questions; works from a disk without a network
    FOLDER/page/pictures/       the pictures, decoded and written anew, so that no parameters are inside
    FOLDER/key.json             which run stood on which side; stays with whoever asks

Names of pictures are hashes; the order of files says nothing.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from consistory_ray.errors import AssetError, InputError, Problem
from consistory_ray.output.assets import open_picture
from consistory_ray.study.questions import Study
from consistory_ray.study.runs import Picture, Run

PAGE_FOLDER, KEY_FILE = "page", "key.json"
MAX_SIDE = 768
"""Larger pictures are shown smaller, in pixels."""
_PARTS = ("study.css", "study.js")


def write_page(study: Study, runs: Sequence[Run], folder: Path, title: str = "Which one?") -> Path:
    """Write a study's page and key.

    Args:
        study: the questions.
        runs: where their pictures are.
        folder: a new or empty one.
        title: of the page; whoever answers reads it.

    Returns:
        The page's file.

    Raises:
        InputError: the folder holds something.
        AssetError: a picture is missing or cannot be decoded.
        StorageError: the storage failed.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InputError("the page cannot be written", [Problem("--to", str(folder), "give a new or an empty folder")])
    pictures = folder / PAGE_FOLDER / "pictures"
    pictures.mkdir(parents=True)
    by_name = {run.name: run for run in runs}
    for question in study.questions:
        for name, shown in ((question.left, question.left_pictures), (question.right, question.right_pictures)):
            for picture in shown:
                target = pictures / _file_name(study, picture)
                if not target.exists():
                    target.write_bytes(_anonymous(by_name[name], picture))
    (folder / KEY_FILE).write_text(json.dumps(_key(study), indent=1) + "\n")
    page = folder / PAGE_FOLDER / "index.html"
    page.write_text(_html(study, title), encoding="utf-8")
    return page


def _file_name(study: Study, picture: Picture) -> str:
    return hashlib.sha256(f"{study.id}/{picture.sha256}".encode()).hexdigest()[:20] + ".webp"


def _anonymous(run: Run, picture: Picture) -> bytes:
    """A picture's pixels alone, as WebP."""
    data = run.store.read(picture.path)
    try:
        with open_picture(data) as image:
            pixels = Image.frombytes("RGB", image.size, image.convert("RGB").tobytes())  # no metadata comes along
    except Exception as error:  # see open_picture
        raise AssetError(f"{run.store.url}/{picture.path} cannot be decoded: {error}") from error
    pixels.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    pixels.save(buffer, "WEBP", quality=92, method=4)
    return buffer.getvalue()


def _key(study: Study) -> dict[str, Any]:
    """What answers are read with."""
    keys = ("id", "asks", "subject", "prompts", "left", "right")
    questions = [{key: getattr(question, key) for key in keys} for question in study.questions]
    return {**dataclasses.asdict(dataclasses.replace(study, questions=())), "questions": questions}


def _html(study: Study, title: str) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("consistory_ray.study", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = (environment.get_template(name).render() for name in _PARTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    questions = [
        {
            "id": question.id,
            "asks": question.asks,
            "prompts": question.prompts,
            "left": [f"pictures/{_file_name(study, picture)}" for picture in question.left_pictures],
            "right": [f"pictures/{_file_name(study, picture)}" for picture in question.right_pictures],
        }
        for question in study.questions
    ]
    return environment.get_template("study.html.j2").render(
        title=title,
        style=style,
        script=script,
        script_hash=f"sha256-{digest}",
        data={"study": study.id, "questions": questions},
    )
