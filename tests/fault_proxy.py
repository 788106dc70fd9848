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
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

UNAVAILABLE = "503"
CONFLICT = "409"
RESET = "connection reset"
STALL = "no answer, nothing done"
LOST = "done, answer lost"
LATE = "done, answer too late"
SLOW = "slow"
FORBIDDEN = "403"
NOT_IMPLEMENTED = "501"

SLOW_S = 0.3
STALL_S = 30.0
"""Longer than any client here waits."""

_ERRORS = {
    UNAVAILABLE: "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>",
    CONFLICT: "<Error><Code>ConditionalRequestConflict</Code><Message>Try again.</Message></Error>",
    FORBIDDEN: "<Error><Code>SignatureDoesNotMatch</Code><Message>Check your key.</Message>"
    "<AWSAccessKeyId>{key}</AWSAccessKeyId><StringToSign>AWS4 {key}</StringToSign></Error>",
    NOT_IMPLEMENTED: "<Error><Code>NotImplemented</Code><Message>A header is not known.</Message></Error>",
}
_RANDOM_NAME = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Seen:
    """A request: its method, the key after the bucket, and what was done to it."""

    method: str
    key: str
    conditional: bool
    fault: str | None
    headers: Mapping[str, str]


@dataclass
class FaultProxy:
    """`url` is where clients connect, once it is started. `strips_conditions` makes a store out of the one
    behind it that does not know create-only PUT."""

    backend: str
    strips_conditions: bool = False
    seen: list[Seen] = field(default_factory=list)
    url: str = ""
    _planned: list[tuple[str, Callable[[str, str], bool]]] = field(default_factory=list)
    _rate: float = 0.0
    _seed: int = 0
    _kinds: tuple[str, ...] = ()
    _times: Counter[tuple[str, str]] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)

    def fail(self, fault: str, method: str = "", key: str = "", times: int = 1) -> None:
        """The next requests with this method (any) and with `key` in theirs meet with a fault."""

        def fits(of: str, at: str) -> bool:
            return method in ("", of) and key in at

        self._planned += [(fault, fits)] * times

    def fail_at_random(self, rate: float, seed: int, *kinds: str) -> None:
        """From now on each request meets with one of the faults by this chance; conflicts only creates."""
        self._rate, self._seed, self._kinds = rate, seed, kinds

    def faults(self) -> Counter[str]:
        return Counter(request.fault for request in self.seen if request.fault is not None)

    def requests(self, method: str, key: str = "") -> list[Seen]:
        return [request for request in self.seen if request.method == method and key in request.key]

    def decide(self, method: str, key: str, headers: Mapping[str, str]) -> str | None:
        """The fault of this request, or None, written down."""
        conditional = "if-none-match" in headers
        with self._lock:
            fault = self._planned_fault(method, key) or self._random_fault(method, key, conditional)
            self.seen.append(Seen(method, key, conditional, fault, headers))
        return fault

    def _planned_fault(self, method: str, key: str) -> str | None:
        for number, (fault, fits) in enumerate(self._planned):
            if fits(method, key):
                del self._planned[number]
                return fault
        return None

    def _random_fault(self, method: str, key: str, conditional: bool) -> str | None:
        request = (method, _RANDOM_NAME.sub("", key))
        self._times[request] += 1
        dice = random.Random(repr((self._seed, request, self._times[request])))
        if dice.random() >= self._rate:
            return None
        return dice.choice([kind for kind in self._kinds if conditional or kind != CONFLICT])

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
        key = path.strip("/").partition("/")[2] or query
        headers = {name.lower(): value for name, value in self.headers.items()}
        fault = self.proxy.decide(self.command, key, headers)
        if fault in _ERRORS:
            self.refuse(int(fault or 0), _ERRORS[fault or ""])
        elif fault == STALL:
            self.hang_up()
        elif fault == RESET:
            self.reset()
        else:
            answer = self.forward(body)
            if fault == LOST:
                self.reset()
            elif fault == LATE:
                self.hang_up()
            else:
                self.proxy.closing.wait(SLOW_S if fault == SLOW else 0)
                self.pass_on(*answer)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer  # noqa: N815 - their names in http.server

    def forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        headers = dict(self.headers.items())
        if self.proxy.strips_conditions:
            headers = {name: value for name, value in headers.items() if name.lower() != "if-none-match"}
        host = urlsplit(self.proxy.backend).netloc
        with contextlib.closing(http.client.HTTPConnection(host)) as connection:
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()

    def pass_on(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = dict((name.lower(), value) for name, value in headers).get("content-length", str(len(body)))
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status: int, text: str) -> None:
        key = re.search(r"Credential=([^/]+)", self.headers.get("authorization", ""))
        data = text.format(key=key[1] if key else "").encode()
        self.pass_on(status, [("Content-Type", "application/xml")], b"" if self.command == "HEAD" else data)

    def hang_up(self) -> None:
        self.proxy.closing.wait(STALL_S)
        self.close_connection = True

    def reset(self) -> None:
        linger = struct.pack("ii", 1, 0)  # closing then sends a reset, and no more data
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()
        self.close_connection = True

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # the other side, or `reset`, was first
            super().finish()

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def log_message(self, format: str, *args: object) -> None:
        pass
