"""A proxy between a client and an S3 server that does what networks and busy stores do.

Which request meets with which fault is either said beforehand, or follows from a seed, the request and how
often it was made: neither time nor the order of requests that run at once has a say.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

UNAVAILABLE, CONFLICT, FORBIDDEN, NOT_IMPLEMENTED, MOVED = "503", "409", "403", "501", "301"
RESET = "connection reset, nothing done"
STALL = "no answer, nothing done"
LOST = "done, answer lost"
LATE = "done, answer too late"
SLOW = "slow"

ACCESS_KEY, SECRET_KEY = "AKIATESTSTESTSTESTS1", "this/is+the/secret+of+the+tests/and+no+other"
"""What clients sign with; neither the proxy nor the server behind it checks."""

SLOW_S = 0.3
STALL_S = 30.0
"""Longer than any client here waits."""

_BODIES = {
    UNAVAILABLE: "<Code>SlowDown</Code><Message>Please reduce your request rate.</Message>",
    CONFLICT: "<Code>ConditionalRequestConflict</Code><Message>Try again.</Message>",
    FORBIDDEN: "<Code>SignatureDoesNotMatch</Code><Message>Check your key.</Message>"
    f"<AWSAccessKeyId>{ACCESS_KEY}</AWSAccessKeyId><StringToSign>AWS4 {ACCESS_KEY}</StringToSign>",
    NOT_IMPLEMENTED: "<Code>NotImplemented</Code><Message>A header is not known.</Message>",
    MOVED: "<Code>PermanentRedirect</Code><Message>Another endpoint.</Message>",
}
_RANDOM_NAME = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Seen:
    """A request, the key after the bucket (or the query), and what was done to it."""

    method: str
    key: str
    headers: Mapping[str, str]
    fault: str | None


@dataclass
class FaultProxy:
    """`url` is where clients connect while it is `running`. With `strips_conditions` it makes a store that
    does not know create-only PUT out of the one behind it."""

    backend: str
    strips_conditions: bool = False
    seen: list[Seen] = field(default_factory=list)
    url: str = ""
    closing: threading.Event = field(default_factory=threading.Event)
    _planned: list[tuple[str, str, str]] = field(default_factory=list)
    _dice: tuple[float, int, tuple[str, ...]] = (0.0, 0, ())
    _times: Counter[tuple[str, str]] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, fault: str, method: str = "", key: str = "", times: int = 1) -> None:
        """The next requests with this method (or any) and with `key` in theirs meet with a fault."""
        self._planned += [(fault, method, key)] * times

    def fail_at_random(self, rate: float, seed: int, *kinds: str) -> None:
        """From now on each request meets with one of the faults by this chance; conflicts only creates."""
        self._dice = (rate, seed, kinds)

    def stop_failing(self) -> None:
        self._planned.clear()

    def faults(self) -> Counter[str]:
        return Counter(request.fault for request in self.seen if request.fault is not None)

    def requests(self, method: str = "", key: str = "") -> list[Seen]:
        return [one for one in self.seen if method in ("", one.method) and key in one.key]

    def decide(self, method: str, key: str, headers: Mapping[str, str]) -> str | None:
        """The fault of this request, or None, written down."""
        with self._lock:
            planned = next((it for it in self._planned if it[1] in ("", method) and it[2] in key), None)
            if planned:
                self._planned.remove(planned)
            fault = planned[0] if planned else self._random_fault(method, key, "if-none-match" in headers)
            self.seen.append(Seen(method, key, headers, fault))
        return fault

    def _random_fault(self, method: str, key: str, conditional: bool) -> str | None:
        (rate, seed, kinds), request = self._dice, (method, _RANDOM_NAME.sub("", key))
        self._times[request] += 1
        dice = random.Random(repr((seed, request, self._times[request])))
        possible = [kind for kind in kinds if conditional or kind != CONFLICT]
        return dice.choice(possible) if dice.random() < rate else None

    @contextlib.contextmanager
    def running(self) -> Iterator[FaultProxy]:
        handler = type("Handler", (_Handler,), {"proxy": self})
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            self.url = f"http://127.0.0.1:{server.server_port}"
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
            thread.start()
            try:
                yield self
            finally:
                self.closing.set()
                server.shutdown()
                thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        path, _, query = self.path.partition("?")
        headers = {name.lower(): value for name, value in self.headers.items()}
        if headers.get("x-goog-if-generation-match") == "0":  # as Google says it
            headers["if-none-match"] = "*"
        fault = self.proxy.decide(self.command, unquote(path).lstrip("/").partition("/")[2] or query, headers)
        if fault in _BODIES:
            self.refuse(fault or "")
            return
        answer = None if fault in (STALL, RESET) else self.forward(body, headers)
        if fault in (STALL, LATE):
            self.proxy.closing.wait(STALL_S)
        if answer is None or fault in (LOST, LATE):
            self.reset()
            return
        self.proxy.closing.wait(SLOW_S if fault == SLOW else 0)
        self.pass_on(*answer)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer  # noqa: N815 - their names in http.server

    def forward(self, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        if self.proxy.strips_conditions:
            headers = {name: value for name, value in headers.items() if name != "if-none-match"}
        with contextlib.closing(http.client.HTTPConnection(urlsplit(self.proxy.backend).netloc)) as backend:
            backend.request(self.command, self.path, body, headers)
            answer = backend.getresponse()
            told = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, told, answer.read()

    def pass_on(self, status: int, headers: dict[str, str], body: bytes) -> None:
        length = headers.get("content-length") if self.command == "HEAD" else None
        self.send_response_only(status)
        for name, value in headers.items():
            if name not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        self.send_header("content-length", length or str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, fault: str) -> None:
        body = f"<Error>{_BODIES[fault]}</Error>".encode()
        self.pass_on(int(fault), {}, b"" if self.command == "HEAD" else body)

    def reset(self) -> None:
        """Closing sends a reset then, and nothing more."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # the client, or `reset`, closed the connection
            super().handle()

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def log_message(self, format: str, *args: object) -> None:
        pass
