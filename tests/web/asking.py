"""Requests to the pages of a local server, without a socket."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from balancer.web.door import App, Door

PORT = 8765
TOKEN = "the-token"
OWN = {"host": f"127.0.0.1:{PORT}"}
FROM_OWN = {**OWN, "origin": f"http://127.0.0.1:{PORT}", "content-type": "application/json"}


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(app: App, path: str, method: str = "GET", headers: dict[str, str] | None = None, body: bytes = b""):
    """What the door answers; the headers are those of a page of its own, if none are given."""
    usual = OWN if method == "GET" else FROM_OWN
    given = [(key.encode(), value.encode()) for key, value in (usual if headers is None else headers).items()]
    return asyncio.run(_answered(Door(app, TOKEN, PORT), path, method, given, body))


async def _answered(app: App, path: str, method: str, headers: list[tuple[bytes, bytes]], body: bytes):
    path, _, query = path.partition("?")
    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "root_path": "",
        "query_string": query.encode(), "headers": headers, "http_version": "1.1", "scheme": "http",
        "server": ("127.0.0.1", PORT), "client": ("127.0.0.1", 50000), "state": {},
    }  # fmt: skip
    parts = [body[at : at + 50_000] for at in range(0, len(body), 50_000)] or [b""]
    sent: list[dict[str, Any]] = []

    async def receive():
        if not parts:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message):
        sent.append(dict(message))

    await app(scope, receive, send)
    start, *rest = sent
    named = {key.decode(): value.decode() for key, value in start["headers"]}
    return Answer(start["status"], named, b"".join(message.get("body", b"") for message in rest))


def post(app: App, path: str, document: Any, headers: dict[str, str] | None = None):
    return ask(app, f"/{TOKEN}/{path}", "POST", headers, json.dumps(document).encode())


def get(app: App, path: str):
    return ask(app, f"/{TOKEN}/{path}")
