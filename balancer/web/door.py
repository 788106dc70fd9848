"""Who may ask the local server: pages of its own, by a secret address.

Any program of any user, and any page that the browser has open, can send a request to a port of this machine.
So a request must name the server as its own pages do (a foreign `Host` is a name that someone made lead
here), must come from no other page (`Origin`), and must begin with the token that only the address printed on
the terminal has.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import PlainTextResponse

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""Of every answer: nothing is loaded from elsewhere, nothing in a page that is not a file of ours runs, and
no address leaves this machine."""

_USUAL = {**HEADERS, "cache-control": "no-store"}

READING = ("GET", "HEAD")


@dataclass(frozen=True, slots=True)
class Door:
    """The ASGI application `app` behind `/TOKEN/`, for pages of this machine's `port` only."""

    app: App
    token: str
    port: int

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        refusal = self._refusal(scope)
        answer: App = self.app
        if refusal:
            answer = PlainTextResponse(f"refused: {refusal}\n", status_code=403)
        else:
            rest = "/" + scope["path"].removeprefix("/").partition("/")[2]
            scope = {**scope, "path": rest, "raw_path": rest.encode()}
        await answer(scope, receive, _with_headers(send))

    def _refusal(self, scope: MutableMapping[str, Any]) -> str:
        """Why a request is not answered; empty if it is."""
        own = {f"{name}:{self.port}" for name in ("127.0.0.1", "localhost")}
        hosts, origins = _values(scope, b"host"), _values(scope, b"origin")
        if len(hosts) != 1 or hosts[0] not in own:
            return "it names another host"
        if any(origin not in {f"http://{name}" for name in own} for origin in origins):
            return "it comes from another page"
        if scope["method"] not in READING and len(origins) != 1:
            return "it does not say from which page it comes"
        given, slash, _ = scope["path"].removeprefix("/").partition("/")
        if not hmac.compare_digest(given.encode(), self.token.encode()) or not slash:
            return "its address lacks the token; open the one that the terminal shows"
        return ""


def _values(scope: MutableMapping[str, Any], name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {key.lower() for key, _ in message.get("headers", [])}
            usual = [(name.encode(), text.encode()) for name, text in _USUAL.items()]
            added = [(name, text) for name, text in usual if name not in given]
            message = {**message, "headers": [*message.get("headers", []), *added]}
        await send(message)

    return sent
