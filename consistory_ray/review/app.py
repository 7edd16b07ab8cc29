"""The addresses of a review: the page, what it asks for, and pictures, which are found by asset id alone.

GET  /                            the page
GET  /api/session                 what is reviewed, by whom, and how far it is
GET  /api/facets?like=            what filters can choose from
GET  /api/view?words=&only=...    a filter's scenes, as a view that does not change while somebody works on it
GET  /api/window?view=&start=     some scenes of a view, as they are now
GET  /api/position?view=&picture= where a scene is in a view
GET  /api/scene/PICTURE           everything about a scene
GET  /api/changes?since=          what anybody has decided since, and whether there are new pictures
POST /api/decisions               decisions; answered once they are on storage
GET  /picture/ASSET, /preview/ASSET
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from consistory_ray.errors import ConsistoryError, InputError, Problem
from consistory_ray.guards.outside import Limits, parse_json
from consistory_ray.guards.problems import as_problems
from consistory_ray.guards.redaction import redacted
from consistory_ray.output.decisions import MAX_NAME, MAX_NOTE, Action
from consistory_ray.output.storage import OutputStore
from consistory_ray.review.access import Door
from consistory_ray.review.desk import Desk, Planned, Wish
from consistory_ray.review.previews import Previews
from consistory_ray.review.query import parse_query

STATIC = Path(__file__).with_name("static")
MAX_WINDOW, MAX_DECISIONS = 300, 500
_MAX_VIEWS = 64
_MAX_BODY = 4 << 20
_FOR_EVER = {"cache-control": "private, max-age=31536000, immutable"}
Id = Annotated[str, Field(min_length=1, max_length=200)]


class _Wish(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    key: Id
    action: Action
    picture_id: Id
    asset_id: Id
    who: str = Field("", max_length=MAX_NAME)
    take: int | None = None
    note: str = Field("", max_length=MAX_NOTE)
    undoes: Id | None = None


class _Wishes(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    decisions: tuple[_Wish, ...] = Field(min_length=1, max_length=MAX_DECISIONS)


class Review:
    """What answers requests.

    Args:
        store: the output.
        who: the name that decisions carry where the page gives none.
        title: the run's name.
        planned: see :data:`~consistory_ray.review.desk.Planned`.
    """

    def __init__(self, store: OutputStore, who: str, title: str, planned: Planned) -> None:
        self._store = store
        self._who = who
        self._title = title
        self._desk = Desk(store, planned)
        self._previews = Previews(store)
        self._views: OrderedDict[str, list[str]] = OrderedDict()
        self._pool = ThreadPoolExecutor(max(8, 2 * (os.cpu_count() or 1)), thread_name_prefix="pictures")

    async def session(self, request: Request) -> Response:
        """What is reviewed."""
        board = self._desk.board
        told = {"title": self._title, "url": redacted(self._store.url), "who": self._who, "version": board.version}
        return JSONResponse({**told, "counts": board.counts(), **self._trouble()})

    async def facets(self, request: Request) -> Response:
        """What filters can choose from."""
        return JSONResponse(self._desk.board.facets(request.query_params.get("like", "")[:MAX_NAME]))

    async def view(self, request: Request) -> Response:
        """A filter's scenes: their number, and a name to ask for them by."""
        query = parse_query(request.query_params)
        found = await asyncio.to_thread(self._desk.board.find, query)
        name = secrets.token_hex(8)
        self._views[name] = found
        while len(self._views) > _MAX_VIEWS:
            self._views.popitem(last=False)
        return JSONResponse({"view": name, "total": len(found), "version": self._desk.board.version})

    async def window(self, request: Request) -> Response:
        """Some scenes of a view."""
        name = request.query_params.get("view", "")
        start, count = (_number(request, key, most) for key, most in (("start", 1 << 40), ("count", MAX_WINDOW)))
        if name not in self._views:
            return JSONResponse({"error": "this view is forgotten: ask for it again"}, 410)
        self._views.move_to_end(name)
        pictures = self._views[name][start : start + count]
        found = {item["id"]: item for item in self._desk.board.items(pictures)}
        return JSONResponse({"start": start, "items": [found.get(one, {"id": one, "gone": True}) for one in pictures]})

    async def position(self, request: Request) -> Response:
        """Where a scene is in a view; -1 where it is not."""
        pictures = self._views.get(request.query_params.get("view", ""), [])
        picture = request.query_params.get("picture", "")
        return JSONResponse({"position": pictures.index(picture) if picture in pictures else -1})

    async def scene(self, request: Request) -> Response:
        """Everything about a scene."""
        found = self._desk.board.whole(request.path_params["picture"])
        return JSONResponse(found) if found else JSONResponse({"error": "there is no such scene"}, 404)

    async def changes(self, request: Request) -> Response:
        """What has happened since a version."""
        await self._desk.look()
        board = self._desk.board
        items = board.changed_since(_number(request, "since", 1 << 40))
        told = {"version": board.version, "counts": board.counts(), "reset": items is None, "items": items or []}
        return JSONResponse(told | self._trouble())

    async def decide(self, request: Request) -> Response:
        """Take decisions; the answer says that they are on storage."""
        body = await _body(request)
        try:
            given = _Wishes.model_validate(parse_json(body, Limits(bytes=_MAX_BODY, depth=8)))
        except ValidationError as error:
            raise InputError("these are no decisions", as_problems(error)) from error
        except ValueError as error:
            raise InputError("these are no decisions", [Problem("body", "", str(error))]) from error
        wishes = [Wish(**one.model_dump() | {"who": one.who.strip() or self._who}) for one in given.decisions]
        made = await self._desk.decide(wishes)
        results = [{"key": wish.key, "decision_id": one.decision_id} for wish, one in zip(wishes, made, strict=True)]
        board = self._desk.board
        items = board.items(dict.fromkeys(wish.picture_id for wish in wishes))
        return JSONResponse({"results": results, "items": items, "counts": board.counts()})

    async def picture(self, request: Request) -> Response:
        """A picture as it is."""
        return await self._served(request, lambda row: (self._store.read(row["path"]), "image/png"))

    async def preview(self, request: Request) -> Response:
        """A picture small enough for a grid."""
        return await self._served(request, self._previews.read)

    async def close(self) -> None:
        """Finish what was begun."""
        await self._desk.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _served(self, request: Request, read: Callable[[Mapping[str, Any]], tuple[bytes, str]]) -> Response:
        row = self._desk.board.catalogue.asset(request.path_params["asset"])
        if row is None:
            return JSONResponse({"error": "there is no such picture"}, 404)
        try:
            data, kind = await asyncio.get_running_loop().run_in_executor(self._pool, read, row)
        except (ConsistoryError, ValueError) as error:
            return JSONResponse({"error": redacted(str(error))}, 502)
        is_named = request.query_params.get("content") == row["sha256"][:16]
        return Response(data, media_type=kind, headers=_FOR_EVER if is_named else None)

    def _trouble(self) -> dict[str, Any]:
        broken = [f"{path}: {reason}" for path, reason in self._desk.broken.items()]
        return {"trouble": redacted(self._desk.trouble), "broken": broken}


def make_app(
    store: OutputStore,
    token: str,
    hosts: Iterable[str],
    *,
    who: str,
    title: str = "Pictures",
    planned: Planned = lambda: None,
) -> Starlette:
    """The application; the index and all decisions are read now.

    Args:
        store: the output.
        token, hosts: see :class:`~consistory_ray.review.access.Door`.
        who, title, planned: see :class:`Review`.

    Raises:
        StorageError, InputError: the output cannot be read.
    """
    review = Review(store, who, title, planned)

    async def page(request: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await review.close()

    return Starlette(
        routes=[
            Route("/", page),
            Route("/api/session", review.session),
            Route("/api/facets", review.facets),
            Route("/api/view", review.view),
            Route("/api/window", review.window),
            Route("/api/position", review.position),
            Route("/api/scene/{picture}", review.scene),
            Route("/api/changes", review.changes),
            Route("/api/decisions", review.decide, methods=["POST"]),
            Route("/picture/{asset}", review.picture),
            Route("/preview/{asset}", review.preview),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[Middleware(Door, token=token, hosts=hosts)],
        exception_handlers={InputError: _unfit, ConsistoryError: _failed},
        lifespan=lifespan,
    )


async def _unfit(request: Request, error: Exception) -> Response:
    assert isinstance(error, InputError)
    told = ({"path": one.path, "value": one.value, "fix": one.fix} for one in error.problems)
    problems = [{key: text.encode("utf-8", "backslashreplace").decode() for key, text in one.items()} for one in told]
    return JSONResponse({"error": error.message, "problems": problems}, 400)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": redacted(str(error))}, 503)


async def _body(request: Request) -> bytes:
    data = b""
    async for block in request.stream():
        data += block
        if len(data) > _MAX_BODY:
            raise InputError("these are no decisions", [Problem("body", f"{len(data)} bytes", "send fewer at a time")])
    return data


def _number(request: Request, name: str, most: int) -> int:
    text = request.query_params.get(name, "0")
    if not text.isdecimal() or len(text) > 15 or int(text) > most:
        raise InputError("this cannot be asked", [Problem(name, text[:50], f"give a number from 0 to {most}")])
    return int(text)
