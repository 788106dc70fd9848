"""The live page of a run: one look at its files for all windows, as often as that is cheap."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route

from balancer.errors import BalancerError
from balancer.manifest.image_files import ImageFiles, max_image_pixels
from balancer.manifest.rows import SYNTHETIC, utc_now
from balancer.manifest.runfile import read_run
from balancer.report.facts import CellTable
from balancer.report.over_time import Timeline
from balancer.storage import Storage
from balancer.text.templates import templates
from balancer.watch.following import LogFollower
from balancer.watch.look import Look, RecentImage, columns_of, look_at
from balancer.web.answers import SHARED, image_routes, static_routes
from balancer.web.images import ImageShelf

PAGES = "balancer.watch.pages"

EVERY_S = 1.0

SHARE = 0.1
"""Of the time that a look may take: a long run is looked at less often."""

MAX_ROWS = 300
"""Classes, and rows of cells."""


@dataclass(slots=True)
class LiveRun:
    """The last look at a run, as JSON. A look that fails says why; the one before it stays."""

    storage: Storage
    follower: LogFollower
    shelf: ImageShelf
    now: Callable[[], dt.datetime] = utc_now
    clock: Callable[[], float] = time.monotonic
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _text: str = ""
    _next_s: float = 0.0

    @classmethod
    def of(cls, storage: Storage) -> LiveRun:
        """UsageError if the folder holds no run."""
        info = read_run(storage)
        files = ImageFiles.of(storage.uri, info)
        shelf = ImageShelf(
            lambda name: files.read_from(storage, name, SYNTHETIC), info.run_id, max_image_pixels(info)
        )
        return cls(storage, LogFollower(storage, columns_of(info)), shelf)

    def current(self) -> str:
        """A line of JSON; the same text while nothing has changed."""
        with self._lock:
            begun_s = self.clock()
            if begun_s >= self._next_s:
                self._text = self._looked()
                took_s = self.clock() - begun_s
                self._next_s = begun_s + max(EVERY_S, took_s / SHARE)
            return self._text

    def look(self) -> Look:
        info, view = self.follower.read()
        return look_at(self.storage, info, view, self.now())

    def _looked(self) -> str:
        try:
            return json.dumps(described(self.look(), self.shelf, self.now()), allow_nan=False)
        except BalancerError as error:
            return json.dumps({"error": error.message})

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/", self._page),
                Route("/events", self._events),
                *image_routes(self.shelf),
                *static_routes(SHARED | dict.fromkeys(("watch.css", "watch.js"), PAGES)),
            ]
        )

    def _page(self, request: Request) -> Response:
        info = read_run(self.storage)
        page = templates(PAGES).get_template("watch.html.j2")
        return HTMLResponse(page.render(name=info.name or info.run_id, run_id=info.run_id))

    async def _events(self, request: Request) -> Response:
        return StreamingResponse(self._stream(), media_type="text/event-stream")

    async def _stream(self) -> AsyncIterator[str]:
        sent = ""
        while True:
            text = await run_in_threadpool(self.current)
            yield ": nothing new\n\n" if text == sent else f"data: {text}\n\n"
            sent = text
            await asyncio.sleep(EVERY_S)


def described(look: Look, shelf: ImageShelf, now: dt.datetime) -> dict[str, Any]:
    """What the page is told. The time that passes is left to the page, so a run at rest is the same text."""
    snapshot = look.snapshot
    by_class = sorted(snapshot.by_class.items(), key=lambda item: item[1].accepted / max(item[1].wanted, 1))
    return {
        "state": look.state,
        "simulated": look.info.simulated,
        "last_commit": _moment(look.last_commit),
        "wanted": snapshot.wanted,
        "accepted": snapshot.accepted,
        "short": snapshot.short,
        "open": max(snapshot.wanted - snapshot.accepted - snapshot.short, 0),
        "candidates": snapshot.candidates,
        "rejected": dict(snapshot.rejected_by_reason),
        "accepted_per_min": _rounded(60 * snapshot.accepted_per_s) if look.state == "running" else None,
        "eta_s": _rounded(snapshot.eta_s) if look.state == "running" else None,
        "seconds_per_image": _finite(look.seconds_per_image),
        "cost": _finite(look.cost),
        "cost_basis": look.cost_basis,
        "generators": look.generators,
        "free_bytes": None if look.free_bytes is None else round(look.free_bytes, -8),
        "classes": [{"name": name, **asdict(progress)} for name, progress in by_class[:MAX_ROWS]],
        "more_classes": max(len(by_class) - MAX_ROWS, 0),
        "cells": _cells(look.cells),
        "timeline": _timeline(look.timeline),
        "last_accepted": [_recent(image, shelf) for image in look.accepted],
        "last_rejected": [_recent(image, shelf) for image in look.rejected],
        "lines": list(look.lines),
        "progress_line": look.progress_line,
        "review": list(look.review),
    }


def _cells(table: CellTable) -> dict[str, Any]:
    return {
        "across": table.across,
        "columns": table.columns,
        "rows": [
            {
                "class": row.class_name,
                "values": row.values,
                "cells": [cell and [cell.accepted, cell.wanted, cell.candidates] for cell in row.cells],
            }
            for row in table.rows[:MAX_ROWS]
        ],
        "more": max(len(table.rows) - MAX_ROWS, 0),
    }


def _timeline(timeline: Timeline | None) -> dict[str, Any] | None:
    if timeline is None:
        return None
    parts: dict[str, Sequence[int]] = {"accepted": timeline.accepted, **timeline.rejected}
    return {
        "begin": _moment(timeline.begin),
        "bin_s": timeline.bin_s,
        "parts": [{"name": name, "counts": list(counts)} for name, counts in parts.items()],
    }


def _recent(image: RecentImage, shelf: ImageShelf) -> dict[str, Any]:
    return {
        "image": shelf.put(*image.files),
        "cell": image.cell,
        "reason": image.reason,
        "score": _finite(image.score),
        "threshold": _finite(image.threshold),
        "at": _moment(image.at),
    }


def _moment(moment: dt.datetime | None) -> str | None:
    return moment.astimezone(dt.UTC).isoformat(timespec="milliseconds") if moment else None


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def _rounded(number: float | None) -> float | None:
    """To three digits, which is all that such a figure is worth."""
    return None if (known := _finite(number)) is None else float(f"{known:.3g}")
