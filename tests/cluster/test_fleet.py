"""In which order the actors of a run are started."""

from __future__ import annotations

import pytest

from actors.cluster import pool as pools
from actors.cluster.fleet import Pools, start_pools
from actors.cluster.pool import Limits, Pool, Reservation
from tests.workers import EchoSpec


@pytest.fixture
def started(monkeypatch):
    """What pools do, in order, without Ray."""
    done = []
    monkeypatch.setattr(pools.Pool, "start", lambda pool: done.append(pool.kind))
    monkeypatch.setattr(pools.Pool, "wait_until_placed", lambda pool: done.append(f"{pool.kind} placed"))
    return done


def start(verifier_gpus):
    def pool(kind, num_gpus=0.0):
        return Pool(kind, EchoSpec(), 1, Limits(1, 1, 1), Reservation(num_gpus=num_gpus))

    start_pools(Pools(pool("generator"), pool("verifier", verifier_gpus), pool("writer")))


def test_those_that_generators_share_are_started_before_them(started):
    """Or many generators make images for seconds that nobody is there to judge, until all must pause."""
    start(verifier_gpus=0)
    assert started[-1] == "generator"


def test_on_gpus_every_generator_has_its_place_before_a_verifier_takes_one(started):
    start(verifier_gpus=0.15)
    assert started.index("generator placed") < started.index("verifier")
