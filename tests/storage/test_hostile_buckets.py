"""Whatever a bucket answers, a request ends, in bounded time and memory, and in one line.

The server here says what it likes; nothing of S3 is behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from obstore.store import S3Store

from balancer.errors import StorageError
from balancer.storage import bounded
from balancer.storage.bounded import in_memory, wait_for
from balancer.storage.failures import BadAnswerError
from balancer.storage.objects import Listing, ObjectStorage, Patience

MEGABYTE = b"A" * (1 << 20)
PAUSE_S = 0.005
"""After each: on a busy machine the reader looks at its memory late, and this bounds what came meanwhile."""
LENGTH = ("Content-Length", "100")
CHUNKED = ("Transfer-Encoding", "chunked")
DATED = (("ETag", '"x"'), ("Last-Modified", "Sat, 28 Nov 2026 00:00:00 GMT"))


@dataclass
class Liar:
    """A server whose answers are made by `answer`, but those to HEAD; it counts requests and bytes."""

    answer: Callable[[Handler], None] = lambda handler: None
    url: str = ""
    head_bytes: int = 100
    requests: int = 0
    sent: int = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    liar: Liar

    def do_HEAD(self) -> None:
        self.start(200, ("Content-Length", str(self.liar.head_bytes)))

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.liar.requests += 1
        with contextlib.suppress(OSError):
            self.liar.answer(self)
            return
        self.close_connection = True

    do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815 - their names in http.server

    def start(self, status: int, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (*DATED, *headers):
            self.send_header(name, value)
        self.end_headers()

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.liar.sent += len(data)

    def without_end(self) -> None:
        while True:
            self.chunk(MEGABYTE)
            time.sleep(PAUSE_S)

    def whole(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        self.start(status, ("Content-Length", str(len(body))), *headers)
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def liar() -> Iterator[Liar]:
    made = Liar()
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"liar": made})) as server:
        server.daemon_threads = True
        made.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield made
        server.shutdown()
        thread.join()


def storage_at(liar: Liar, **patience: float) -> ObjectStorage:
    store = S3Store(
        "bucket",
        prefix="run",
        endpoint=liar.url,
        region="eu-west-3",
        access_key_id="a",
        secret_access_key="b",
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    pauses = [0.0]
    return ObjectStorage(
        "s3://bucket/run",
        store,
        Patience(**patience),
        clock=lambda: time.monotonic() + sum(pauses),
        sleep=pauses.append,
    )


@pytest.fixture
def small_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are given up when the process has grown by 50 megabytes. What tests before have freed is given
    back to the system, or an answer would fill that first."""
    ctypes.CDLL(None).malloc_trim(0)
    monkeypatch.setattr("balancer.storage.objects.in_memory", lambda request: in_memory(request, 50_000_000))


# ---- bodies ----------------------------------------------------------------------------------


def longer_than_it_says(handler: Handler) -> None:
    handler.start(200, LENGTH, CHUNKED)
    handler.without_end()


def part_longer_than_it_says(handler: Handler) -> None:
    handler.start(206, ("Content-Range", "bytes 0-99/1000"), LENGTH, CHUNKED)
    handler.without_end()


def shorter_than_it_says(handler: Handler) -> None:
    handler.start(200, LENGTH, CHUNKED)
    handler.chunk(b"A")
    handler.wfile.write(b"0\r\n\r\n")


READS: dict[str, Callable[[ObjectStorage], Any]] = {
    "read": lambda storage: storage.read("a", 1000),
    "read_range": lambda storage: storage.read_range("a", 0, 100),
}


@pytest.mark.parametrize(
    ("method", "answer", "cause"),
    [
        ("read", longer_than_it_says, "longer than the 100 bytes that it says"),
        ("read_range", part_longer_than_it_says, "longer than the 100 bytes that it says"),
        ("read", shorter_than_it_says, "99 bytes shorter than the 100 it says"),
    ],
)
def test_a_body_is_read_no_further_than_the_size_it_says(liar, method, answer, cause):
    liar.answer = answer
    with pytest.raises(StorageError, match=f"cannot read s3://bucket/run/a: .*{cause}; tried 3 times"):
        READS[method](storage_at(liar))
    assert liar.requests == 3
    assert liar.sent < 100e6  # what the sockets hold, and no more


def test_a_file_that_says_it_is_too_large_is_not_read(liar):
    liar.answer = lambda handler: handler.start(200, ("Content-Length", str(10**15)))
    with pytest.raises(StorageError, match=r"1,000,000,000\.0 megabytes, over the limit of 0\.001"):
        storage_at(liar).read("a", 1000)


def test_a_part_that_was_not_asked_for_is_refused(liar):
    liar.answer = lambda handler: handler.whole(206, b"A" * 100, ("Content-Range", "bytes 50-149/1000"))
    with pytest.raises(StorageError, match="cannot read s3://bucket/run/a"):
        storage_at(liar, total_s=0.0).read_range("a", 0, 100)


def test_a_file_of_another_size_is_told_without_reading_it(liar):
    liar.answer, liar.head_bytes = lambda handler: handler.whole(412, b""), 10**15
    with pytest.raises(StorageError, match="holds other bytes, 1000000000000000 of them where 1 were"):
        storage_at(liar).publish("a", b"1")


# ---- what the library reads whole ------------------------------------------------------------


def error_without_end(handler: Handler) -> None:
    handler.start(403, CHUNKED)
    handler.without_end()


def page_without_end(handler: Handler) -> None:
    handler.start(200, CHUNKED)
    while True:
        handler.chunk(b"<!-- " + MEGABYTE + b"-->")
        time.sleep(PAUSE_S)


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (lambda storage: storage.read("a"), error_without_end),
        (lambda storage: storage.read_range("a", 0, 1), error_without_end),
        (lambda storage: storage.create("a", b""), error_without_end),
        (lambda storage: storage.replace("a", b""), error_without_end),
        (lambda storage: storage.delete("a"), error_without_end),
        (lambda storage: storage.list(""), error_without_end),
        (lambda storage: storage.list(""), page_without_end),
    ],
)
def test_an_error_or_a_page_without_an_end_is_given_up_by_the_memory_it_takes(
    liar, small_answers, call, answer
):
    liar.answer = answer
    before = bounded._memory_bytes()
    with pytest.raises(StorageError, match="grew by more than 50 megabytes; tried 3 times"):
        call(storage_at(liar))
    assert liar.requests == 3
    assert bounded._memory_bytes() - before < 500e6


def test_an_answer_that_takes_no_memory_is_waited_for():
    assert wait_for(lambda: in_memory(asyncio.sleep(0.2, "done"), 50_000_000), 10.0) == "done"


@pytest.mark.parametrize(
    "error", [KeyError("a"), StopAsyncIteration(), TimeoutError("theirs"), OSError(5, "b")]
)
def test_an_error_of_a_request_is_what_its_caller_gets(error):
    async def fails() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        wait_for(lambda: in_memory(fails()), 10.0)
    assert caught.value.args == error.args


@pytest.mark.parametrize("grown", [False, True])
def test_a_request_that_is_given_up_is_cancelled(monkeypatch, grown):
    cancelled = threading.Event()
    if grown:
        sizes = iter(range(0, 10**12, 10**9))
        monkeypatch.setattr(bounded, "_memory_bytes", lambda: next(sizes))

    async def endless() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    with pytest.raises(BadAnswerError, match="grew by" if grown else "longer than 0.2 seconds"):
        wait_for(lambda: in_memory(endless()), 60.0 if grown else 0.2)
    assert cancelled.wait(5)


def test_requests_are_made_from_any_thread_also_one_that_runs_a_loop_of_its_own():
    async def asks() -> str:
        return wait_for(lambda: asyncio.sleep(0, "answer"), 10.0)

    assert asyncio.run(asks()) == "answer"


# ---- listings --------------------------------------------------------------------------------


def page(names: list[str], token: str) -> bytes:
    contents = "".join(
        f"<Contents><Key>run/{name}</Key><LastModified>2026-11-28T00:00:00.000Z</LastModified>"
        f'<ETag>"x"</ETag><Size>1</Size></Contents>'
        for name in names
    )
    return (
        f"<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>{token}"
        f"</NextContinuationToken>{contents}</ListBucketResult>"
    ).encode()


def test_a_listing_that_repeats_its_pages_is_refused(liar):
    liar.answer = lambda handler: handler.whole(200, page([f"log/{n}" for n in range(1000)], "t"))
    with pytest.raises(StorageError, match=r"cannot list s3://bucket/run/log: .* 101 pages in a row repeat"):
        storage_at(liar).list("log")


def test_a_listing_of_empty_pages_is_given_up_in_time(liar):
    liar.answer = lambda handler: handler.whole(200, page([], str(liar.requests)))
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"longer than 0\.5 seconds"):
        storage_at(liar, page_s=0.5, total_s=0.0).list("log")
    assert time.monotonic() - began < 10
    asked = liar.requests
    time.sleep(0.2)
    assert liar.requests <= asked + 1  # nobody goes on asking


def test_a_listing_of_ever_new_names_is_given_up_in_time(liar):
    def more(handler: Handler) -> None:
        handler.whole(200, page([f"log/{liar.requests:09}-{n}" for n in range(100)], str(liar.requests)))

    liar.answer = more
    with pytest.raises(StorageError, match=r"longer than 0\.5 seconds"):
        storage_at(liar, listing_s=0.5).list("log")


@pytest.mark.parametrize(
    ("pages", "cause"),
    [
        ([["log/1", "log/2"], ["log/3"]], "more than 2 names"),
        ([["log/1"]] * 5, "4 pages in a row repeat names"),
        ([["elsewhere/1"]], "names 'elsewhere/1', which is not in that folder"),
        ([["log"]], "names 'log', which is not in that folder"),
        ([["log/" + "a" * 2000]], "a name has 2,004 characters, the limit is 1,024"),
    ],
)
def test_a_listing_has_a_limit_on_names_their_length_place_and_repetition(pages, cause):
    listing = Listing("log", max_names=2, max_idle_pages=3)
    for one in pages[:-1]:
        listing.add(one)
    with pytest.raises(BadAnswerError, match=cause):
        listing.add(pages[-1])


def test_a_listing_of_all_takes_every_folder():
    listing = Listing("")
    listing.add(["a", "log/b"])
    listing.add(["log/b"])
    assert listing.names == {"a", "log/b"}
