"""An S3 server that fails, hangs and hangs up as real ones do, only more often; started by ``harness``.

Of every hundred requests, as many as ``{"do": "rates", ...}`` says meet, by the choice of a seeded generator:

* ``error``: 500 or 503, and nothing was done;
* ``lost``: 500 or a closed connection *after* the request was carried out, so that the client knows nothing of it;
* ``slow``: an answer that comes late, mostly later than the client waits.

With ``where`` only requests are meant whose path has that in it. ``{"do": "hold", "method": "DELETE", "where": ...}``
keeps all such requests waiting until ``{"do": "let go", "carry_out": ...}``: then so many of them are carried out and
the others refused. ``{"do": "is held"}`` asks how many have come.
"""

from __future__ import annotations

import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from tests.chaos.hosts import serve

LATE = (0.5, 4.0)
ERROR = b'<?xml version="1.0"?><Error><Code>%s</Code><Message>injected</Message></Error>'
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Faulty:
    """A WSGI application in front of another one.

    Args:
        inner: the other one.
        seed: of the choice.
    """

    def __init__(self, inner: Application, seed: int) -> None:
        self._inner = inner
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        self.rates: dict[str, float] = {}
        self.where = ""
        self.met: Counter[str] = Counter()
        self.held = 0
        self._hold: tuple[str, str] | None = None
        self._carry_out = 0
        self._let_go = threading.Event()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request."""
        path = str(environ["PATH_INFO"])
        if not self._may_pass(str(environ["REQUEST_METHOD"]), path):
            return self._refuse(start_response, False)
        with self._lock:
            fault, coin, late = self._draw(path), self._chance.random() < 0.5, self._chance.uniform(*LATE)
            self.met[fault] += 1
        if fault == "error":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            return self._refuse(start_response, coin)
        if fault == "slow":
            time.sleep(late)
        answer = self._inner(environ, start_response if fault != "lost" else _forget)
        if fault == "lost":
            list(answer)
            if coin:
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return self._refuse(start_response, False)
        return answer

    def hold(self, method: str, where: str) -> None:
        """Let requests of this kind wait."""
        self._let_go.clear()
        self._hold, self.held = (method, where), 0

    def let_go(self, carry_out: int) -> None:
        """Carry out so many of those that were held, refuse the others."""
        self._hold, self._carry_out = None, carry_out
        self._let_go.set()

    def _may_pass(self, method: str, path: str) -> bool:
        """Whether a request is to be carried out, after waiting for that to be known."""
        with self._lock:
            if self._hold is None or method != self._hold[0] or self._hold[1] not in path:
                return True
            self.held += 1
        self._let_go.wait()
        with self._lock:
            self._carry_out -= 1
            return self._carry_out >= 0

    def _draw(self, path: str) -> str:
        if self.where not in path:
            return "none"
        number = 100 * self._chance.random()
        for fault, rate in self.rates.items():
            number -= rate
            if number < 0:
                return fault
        return "none"

    def _refuse(self, start_response: Callable[..., Any], busy: bool) -> Iterable[bytes]:
        status, code = ("503 Slow Down", b"SlowDown") if busy else ("500 Internal Server Error", b"InternalError")
        body = ERROR % code
        start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]


def _forget(status: str, headers: Any, error: Any = None) -> Callable[[bytes], None]:
    return lambda data: None


def main() -> None:
    """Serve until standard input ends."""
    faulty = Faulty(DomainDispatcherApplication(create_backend_app), int(sys.argv[1]))
    server = make_server("127.0.0.1", 0, faulty, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def act(question: dict[str, Any]) -> dict[str, Any]:
        what = question.pop("do")
        if what == "hold":
            faulty.hold(**question)
        elif what == "let go":
            faulty.let_go(**question)
        elif what == "rates":
            faulty.where = question.pop("where", "")
            faulty.rates = {key: float(value) for key, value in question.items()}
        elif what != "is held":
            raise ValueError(what)
        return {"held": faulty.held, "met": dict(faulty.met)}

    serve({"endpoint": f"http://127.0.0.1:{server.server_port}"}, act)


if __name__ == "__main__":
    main()
