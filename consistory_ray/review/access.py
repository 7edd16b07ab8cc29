"""Who is let in: whoever has the link's token, at an address that cannot be another site's.

A review is reached by a link with a random token; the browser keeps it in a cookie that scripts cannot read and other
sites cannot send. A request whose ``Host`` is a name that this server was not told of is refused, so that no site can
make a browser take this server for itself (DNS rebinding). What changes something must come from the page itself.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import socket
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN_HEADER = "x-review-token"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
_UNWANTED = "This is not the link of a review that runs here: use the one that `consistory-ray review` printed."


def new_token() -> str:
    """192 random bits."""
    return secrets.token_urlsafe(24)


def known_hosts(host: str) -> frozenset[str]:
    """The names by which a server that listens on ``host`` may be called, besides addresses."""
    names = {host, "localhost"}
    if not is_loopback(host):
        names |= {socket.gethostname(), socket.getfqdn()}
    return frozenset(name.lower().rstrip(".") for name in names)


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Door:
    """Lets in who may come, and tells browsers what the page may do.

    Args:
        app: what is behind it.
        token: of the link.
        hosts: names of this server; addresses are known anyway, since no other site has them for a name.
    """

    def __init__(self, app: ASGIApp, token: str, hosts: Iterable[str]) -> None:
        self._app = app
        self._token = token
        self._hosts = frozenset(hosts)
        self._cookie = f"consistory-review-{hashlib.sha256(token.encode()).hexdigest()[:12]}"  # ports share cookies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See :mod:`starlette.types`."""
        if scope["type"] != "http":
            await (self._app(scope, receive, send) if scope["type"] == "lifespan" else _close(send))
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    answer[name] = value
                answer.setdefault("cache-control", "no-store")
                if not refusal and self._is_right(_token_of(scope)):
                    answer.append("set-cookie", f"{self._cookie}={self._token}; HttpOnly; SameSite=Strict; Path=/")
            await send(message)

        await (PlainTextResponse(refusal, 403) if refusal else self._app)(scope, receive, marked)

    def _refusal(self, scope: Scope, headers: Headers) -> str:
        """Why a request is refused; empty where it is not."""
        if not self._is_ours(headers.get("host", "")):
            return "This server is not called that. Use its address, or start it with that name as --host."
        given = (_token_of(scope), headers.get(TOKEN_HEADER, ""), self._token_of_cookie(headers.get("cookie", "")))
        if not any([self._is_right(token) for token in given]):  # noqa: C419, all are compared
            return _UNWANTED
        if scope["method"] not in ("GET", "HEAD"):
            origin = headers.get("origin")
            if origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
                return "Only the page itself may do that."
        return ""

    def _is_ours(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
            ipaddress.ip_address(name)
        except ValueError:
            return bool(name := host.rsplit(":", 1)[0].lower().rstrip(".")) and name in self._hosts
        return True

    def _token_of_cookie(self, header: str) -> str:
        try:
            found = SimpleCookie(header).get(self._cookie)
        except CookieError:
            return ""
        return found.value if found else ""

    def _is_right(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self._token.encode())


def _token_of(scope: Scope) -> str:
    """The token in an address; empty where there is none."""
    query: bytes = scope["query_string"]
    return parse_qs(query.decode("latin-1")).get("token", [""])[0]


async def _close(send: Send) -> None:
    await send({"type": "websocket.close", "code": 1008})
