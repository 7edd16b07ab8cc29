"""The command for people who look at an output and decide."""

from __future__ import annotations

import getpass
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from consistory_ray.cli.common import err, exits, out
from consistory_ray.cli.options import OpenBrowser, ReviewHost, ReviewPort, ReviewWho, Url
from consistory_ray.errors import ConsistoryError, InputError, Problem
from consistory_ray.jobs.allowlist import check_allowed
from consistory_ray.watch.reports import line

if TYPE_CHECKING:
    from consistory_ray.output.storage import OutputStore


@exits
def review(
    url: Url,
    host: ReviewHost = "127.0.0.1",
    port: ReviewPort = 0,
    who: ReviewWho = None,
    browser: OpenBrowser = None,
) -> None:
    """Look at an output's pictures in a browser and decide: pick, reject, another take, a note.

    Needs the extra `review`. The page is for whoever has the link that is printed, until Ctrl-C. Decisions are written
    to the output at once, beside the index; `render` makes the takes that were asked for. A render may go on meanwhile.
    """
    from consistory_ray.review.server import can_open_browser, link, listen, refuse_without_extra, serve

    refuse_without_extra()
    from consistory_ray.output.decisions import MAX_NAME
    from consistory_ray.output.run_record import read_run_record
    from consistory_ray.output.storage import open_output
    from consistory_ray.review.access import is_loopback, known_hosts, new_token
    from consistory_ray.review.app import make_app

    check_allowed("URL", url)
    name = _name() if who is None else who.strip()
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise InputError("that is no name", [Problem("--who", name[:MAX_NAME], f"give 1 to {MAX_NAME} characters")])
    store = open_output(url)
    if not store.list_files("index"):
        raise InputError("nothing was rendered there", [Problem("URL", url, "give the folder that a render wrote to")])
    record = read_run_record(store)
    token, hosts = new_token(), known_hosts(host)
    with listen(host, port) as sock:
        app = make_app(
            store, token, hosts, who=name, title=record.name if record else "Pictures", planned=PlannedScenes(store)
        )
        address = link(sock, host, token)
        browse = can_open_browser(host) if browser is None else browser

        def ready() -> None:
            line(out, f"reviewing {store.url} as {name}: {address}")
            if not is_loopback(host):
                line(err, "other machines can reach this: whoever has the link can decide, unencrypted", "yellow")

        serve(app, sock, address, browse=browse, ready=ready)


class PlannedScenes:
    """The ids of an output's scenes in its plan's order; made anew when another job was rendered there.

    Args:
        store: the output.
    """

    def __init__(self, store: OutputStore) -> None:
        self._store = store
        self._job: Mapping[str, Any] | None = None
        self._ids: Sequence[str] | None = None

    def __call__(self) -> Sequence[str] | None:
        """None where the output does not say what it was made from."""
        from consistory_ray.output.run_record import read_run_record
        from consistory_ray.watch.status import plan_of_record

        record = read_run_record(self._store)
        if record is None or record.job != self._job:
            try:
                plan = plan_of_record(record, self._store)
                self._ids = [scene.asset_id for subject in plan.subjects for scene in subject.scenes]
            except ConsistoryError:  # the pictures are there nevertheless
                self._ids = None
            self._job = record.job if record else None
        return self._ids


def _name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user that has no name
        return "somebody"
