"""The pages of a run in a bucket."""

from __future__ import annotations

import json

from balancer.review.server import ReviewPages
from balancer.review.session import ReviewSession
from balancer.storage import open_storage
from balancer.watch.server import LiveRun
from tests.review.small_run import make_run
from tests.web.asking import get, post


def test_a_run_in_a_bucket_is_reviewed_and_watched(run_uri):
    storage = open_storage(run_uri, create=True)
    make_run(storage, images=4, real_images=2).close("complete")
    pages = ReviewPages.of(ReviewSession.open(open_storage(run_uri, create=False), "ann", "estimate"))
    [first, *_] = get(pages.app(), "items").json["items"]
    assert get(pages.app(), f"images/{first['image']}").headers["content-type"] == "image/png"
    sent = {"key": "key-1", "item": first["item"], "answer": "reject", "seconds": 1}
    assert post(pages.app(), "decisions", {"decisions": [sent]}).json["saved"] == ["key-1"]
    live = LiveRun.of(open_storage(run_uri, create=False))
    told = json.loads(live.current())
    assert (told["accepted"], told["free_bytes"]) == (4, None)
    pages.commit_saved()
    told = json.loads(live._looked())
    assert (told["accepted"], told["open"], told["rejected"]) == (3, 1, {"lighting": 2, "reviewed": 1})
    image = told["last_accepted"][0]["image"]
    assert get(live.app(), f"images/{image}/160").headers["content-type"] == "image/jpeg"
