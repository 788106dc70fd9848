"""The page of a review: what it asks for, and what it says was decided."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from balancer.errors import BalancerError, UsageError
from balancer.manifest.image_files import max_image_pixels
from balancer.manifest.rows import utc_now
from balancer.review.decisions import MAX_SECONDS, REJECT_REASONS, Decision
from balancer.review.session import Item, ReviewSession
from balancer.text.templates import templates
from balancer.web.answers import SHARED, image_routes, problem, read_body, static_routes
from balancer.web.images import ImageShelf, key_of

PAGES = "balancer.review.pages"

MOST_LISTED = 500
"""The page asks for more when it is through with these."""

MOST_AT_ONCE = 200

PAUSE_S = 5
LONGEST_S = 60
"""What was saved goes into the log when nothing has been saved for a while, and now and then besides: it
costs two fragments and a new current.parquet."""


@dataclass(slots=True)
class ReviewPages:
    """Answers one person's page. `commit_saved` is to be called now and then, and at the end."""

    session: ReviewSession
    shelf: ImageShelf
    _ids: dict[str, str] = field(default_factory=dict)
    """Row ids by the keys under which the page knows them. Names of real images would tell which ones are."""
    saved: int = 0
    """Decisions of this session that are durable."""
    _committed: int = 0
    _quiet_s: int = 0
    _since_commit_s: int = 0

    @classmethod
    def of(cls, session: ReviewSession) -> ReviewPages:
        info = session.info
        return cls(session, ImageShelf(session.read_image, info.run_id, max_image_pixels(info)))

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/", self._page),
                Route("/items", self._items),
                Route("/decisions", self._decisions, methods=["POST"]),
                *image_routes(self.shelf),
                *static_routes(SHARED | dict.fromkeys(("review.css", "review.js", "outbox.js"), PAGES)),
            ]
        )

    def tick(self) -> None:
        """Called about every second: takes what was saved into the log when the reviewer pauses."""
        self._quiet_s += 1
        self._since_commit_s += 1
        is_due = self._quiet_s >= PAUSE_S or self._since_commit_s >= LONGEST_S
        if self.saved > self._committed and is_due:
            self.commit_saved()

    def commit_saved(self) -> int:
        """Take saved decisions into the log unless a driver holds it; BalancerError, and nothing is lost."""
        self._since_commit_s, saved = 0, self.saved
        taken = self.session.commit()
        self._committed = saved
        return taken

    def _page(self, request: Request) -> Response:
        session, info = self.session, self.session.info
        page = templates(PAGES).get_template("review.html.j2")
        titles = {"correct": "least certain images"}
        return HTMLResponse(
            page.render(
                name=info.name or info.run_id,
                run_id=info.run_id,
                reviewer=session.reviewer,
                queue=session.queue,
                queue_title=titles.get(session.queue, f"class {session.queue}"),
                reasons=REJECT_REASONS,
                sentence=session.progress().sentence,
            )
        )

    def _items(self, request: Request) -> Response:
        try:
            self.session.refresh()
            items = self.session.items()
            self._know(items)
            listed = [self._described(item) for item in items[:MOST_LISTED]]
            return JSONResponse({"items": listed, "progress": asdict(self.session.progress())})
        except BalancerError as error:
            return problem(error.message, 503)

    def _know(self, items: Any) -> None:
        for row_id in (*(item.id for item in items), *self.session.standing()):
            self._ids[self._key(row_id)] = row_id

    def _key(self, row_id: str) -> str:
        return key_of(self.session.info.run_id, "row", row_id)

    def _described(self, item: Item) -> dict[str, Any]:
        """Nothing of it says whether an image is real, how it scored, or what the verifier said."""
        return {
            "item": self._key(item.id),
            "image": self.shelf.put(item.file_name),
            "question": item.question,
            "examples": [self.shelf.put(name) for name in item.real_examples],
        }

    async def _decisions(self, request: Request) -> Response:
        try:
            sent = (await read_body(request))["decisions"]
            if not isinstance(sent, list) or len(sent) > MOST_AT_ONCE:
                raise ValueError(f"decisions are a list of at most {MOST_AT_ONCE}")
        except (ValueError, KeyError, TypeError) as error:
            return problem(f"no decisions can be read: {error}", 400)
        try:
            return JSONResponse(await run_in_threadpool(self._save, sent))
        except BalancerError as error:
            return problem(f"The server cannot save: {error.message}.", 503)

    def _save(self, sent: list[Any]) -> dict[str, Any]:
        if any(isinstance(one, dict) and one.get("item") not in self._ids for one in sent):
            self._know(self.session.items())  # asked for by a server before this one
        decisions, refused, now = [], {}, utc_now()
        for place, one in enumerate(sent):
            try:
                moment = now + dt.timedelta(microseconds=place)  # in the order in which they were made
                decisions.append(self._parsed(one, moment))
            except (UsageError, ValueError) as error:
                refused[str(one.get("key"))[:64] if isinstance(one, dict) else ""] = str(error)
        self.session.save(decisions)
        self.saved += len(decisions)
        self._quiet_s = 0
        return {
            "saved": [decision.key for decision in decisions],
            "refused": refused,
            "progress": asdict(self.session.progress()),
        }

    def _parsed(self, one: Mapping[str, Any], moment: dt.datetime) -> Decision:
        """ValueError or UsageError for anything that the page does not send."""
        if not isinstance(one, dict):
            raise ValueError("a decision is no object")
        row_id = self._ids.get(one["item"]) if isinstance(one.get("item"), str) else None
        if row_id is None:
            raise ValueError("it is about an image that is not in this queue")
        seconds = one.get("seconds")
        if not isinstance(seconds, int | float) or not math.isfinite(seconds):
            raise ValueError("its seconds are no number")
        return Decision(
            key=one.get("key", ""),
            item=row_id,
            answer=one.get("answer", ""),
            reviewer=self.session.reviewer,
            queue=self.session.kind,
            seconds=min(max(float(seconds), 0.0), MAX_SECONDS),
            decided_at=moment,
            reason=one.get("reason"),
            undoes=one.get("undoes"),
        )
