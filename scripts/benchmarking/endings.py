"""Processes that end in the middle of reading rows: each must end, with its own exit code.

An unfinished scan has running threads. A thread that returns to Python while the interpreter shuts down
crashes the process, or blocks it forever.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from balancer.manifest.snapshot.build import compact
from balancer.storage import open_storage
from benchmarking.record import RESULTS, keep_option, save
from benchmarking.synthetic_manifest import write_manifest

PROJECT = RESULTS.parent

ROWS = 3000
FRAGMENT_ROWS = 64
EMBEDDING_DIM = 64

LIMIT_S = 30.0

PLACES = ("log", "compacted", "bucket")


@dataclass(frozen=True, slots=True)
class Ending:
    """`script` has the manifest as `m` and its dataset as `rows`."""

    script: str
    exit_code: int = 0
    last_words: Sequence[str] = field(default_factory=list)


_NO_EMBEDDING = "m.dataset(['id', 'class', 'score'])"

ENDINGS: Mapping[str, Ending] = {
    "first batch": Ending("next(iter(rows.to_batches()))"),
    "head": Ending("rows.head(5)"),
    "DuckDB with LIMIT": Ending(
        f"import duckdb; few = {_NO_EMBEDDING}; "
        "duckdb.sql('select id, score from few where score > 0 limit 5').fetchall()"
    ),
    "half a result of DuckDB": Ending(
        f"import duckdb; few = {_NO_EMBEDDING}; con = duckdb.connect(); con.register('few', few)\n"
        "con.execute('select id, score from few'); con.fetchone()"
    ),
    "half a reader": Ending("reader = rows.scanner().to_reader(); reader.read_next_batch()"),
    "exception": Ending(
        "for batch in rows.to_batches(): raise SystemError('on purpose')", 1, ["SystemError: on purpose"]
    ),
    "sys.exit": Ending("for batch in rows.to_batches(): sys.exit(7)", exit_code=7),
    "thread": Ending(
        "def read(): held.append(rows.to_batches()); next(held[0])\n"
        "held = []; threading.Thread(target=read).start()"
    ),
    "thread that begins late": Ending(
        "def read(): threading.main_thread().join(); held.extend(rows.to_batches())\n"
        "held = []; threading.Thread(target=read).start()"
    ),
    "daemon thread": Ending(
        "def read():\n"
        "    while True:\n"
        "        for batch in rows.to_batches(): began.set()\n"
        "began = threading.Event(); threading.Thread(target=read, daemon=True).start(); began.wait()"
    ),
    "images": Ending("held = iter(m.images()); next(held)"),
    "global": Ending("held = rows.to_batches(filter=pc.field('score') > 0); next(held)"),
}

_BEFORE = """\
import sys, threading
import pyarrow.compute as pc
from balancer import open_manifest
m = open_manifest(sys.argv[1])
rows = m.dataset()
"""


@click.command("endings")
@keep_option
@click.option("--starts", default=30, show_default=True, help="Of each ending in each place.")
@click.option("--at-once", default=2, show_default=True, help="Processes at a time, beside a busy loop.")
@click.option("--endings", default=",".join(ENDINGS), help="Separated by commas; all by default.")
@click.option("--places", default=",".join(PLACES), show_default=True)
@click.option("--dry", is_flag=True, help="Do not keep the figures.")
def command(starts: int, at_once: int, endings: str, places: str, dry: bool) -> None:
    """Leave scans in every way, on a log, a compacted copy and a simulated bucket, under load."""
    began = time.perf_counter()
    cases = []
    with TemporaryDirectory() as folder, _s3(), _busy():
        uris = make_runs(Path(folder), "s3://bucket/run")
        for place, ending in itertools.product(places.split(","), endings.split(",")):
            cases.append(_case(place, ending, uris[place], starts, at_once))
            click.echo(cases[-1], err=True)
    figures = {
        "starts": sum(case["starts"] for case in cases),
        "bad": sum(case["bad"] for case in cases),
        "limit_s": LIMIT_S,
        "cases": cases,
        "benchmark_s": round(time.perf_counter() - began),
    }
    if dry:
        click.echo(f"{figures['bad']} of {figures['starts']} ended badly")
    else:
        save("endings", figures)


def _case(place: str, ending: str, uri: str, starts: int, at_once: int) -> dict[str, Any]:
    with ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(leave, ending, uri) for _ in range(starts)]
        problems = Counter(problem for future in futures if (problem := future.result()) is not None)
    return {
        "place": place,
        "ending": ending,
        "starts": starts,
        "bad": problems.total(),
        "problems": dict(sorted(problems.items())),
    }


def leave(ending: str, uri: str) -> str | None:
    """Run a process that leaves a scan in this way; returns its problem, or None."""
    wanted = ENDINGS[ending]
    command = [sys.executable, "-c", _BEFORE + wanted.script, uri]
    try:
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, check=False, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return "it hangs"
    words = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode == wanted.exit_code and (words[-1:] == wanted.last_words):
        return None
    fatal = next((line for line in words if line.startswith("Fatal")), "")
    return f"exit {done.returncode}: {fatal or ''.join(words[-1:])}"[:200]


def make_runs(folder: Path, bucket: str) -> dict[str, str]:
    """A run in each place, compacted but for the log: their addresses."""
    for name in ("log", "compacted"):
        write_manifest(folder / name, ROWS, FRAGMENT_ROWS, EMBEDDING_DIM)
    compact(open_storage(folder / "compacted", create=False))
    uris = {name: str(folder / name) for name in ("log", "compacted")}
    compacted, there = (open_storage(uri, create=True) for uri in (uris["compacted"], bucket))
    for path in compacted.list(""):
        there.publish(path, compacted.read(path))
    return uris | {"bucket": bucket}


@contextmanager
def _s3() -> Iterator[None]:
    """A simulated S3 with a bucket, which this process and those that it starts can reach."""
    script = PROJECT / "tests" / "s3_server.py"
    with subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        urllib.request.urlopen(urllib.request.Request(f"{url}/bucket", method="PUT")).close()
        os.environ |= reach(url)
        yield
        process.stdin.close()


def reach(url: str) -> dict[str, str]:
    """The environment of a process that uses the simulated S3 at this address."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_REGION": "eu-west-3",
    }


@contextmanager
def _busy() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()
