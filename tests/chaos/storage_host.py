"""An S3 server that fails, hangs and hangs up as real ones do, only more often; started by ``harness``.

Of every hundred requests, as many as ``{"do": "rates", ...}`` says meet, by the choice of a seeded generator:

* ``error``: 500 or 503, and nothing was done;
* ``lost``: 500 or a closed connection *after* the request was carried out, so that the client knows nothing of it;
* ``slow``: an answer that comes late, mostly later than the client waits.
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
        self.met: Counter[str] = Counter()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request."""
        with self._lock:
            fault, coin, late = self._draw(), self._chance.random() < 0.5, self._chance.uniform(*LATE)
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

    def _draw(self) -> str:
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
        faulty.rates = {key: float(value) for key, value in question.items() if key != "do"}
        return dict(faulty.met)

    serve({"endpoint": f"http://127.0.0.1:{server.server_port}"}, act)


if __name__ == "__main__":
    main()
