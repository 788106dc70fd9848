"""A driver with its stages and policies."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from actors.cluster.pool import ActorPool, wait
from actors.loop.batching import Batching, Parents
from actors.loop.collapse import CollapseWatch
from actors.loop.disk_full import DiskFullBackoff
from actors.loop.driver import Driver
from actors.loop.group_commit import Committer
from actors.loop.notices import Notices
from actors.loop.patience import Patience
from actors.loop.revoking import Reviewing
from actors.loop.stages import Generating, Recorder, Verifying, Writing
from actors.loop.stopping import Stopping
from balancer.config.schema import Config
from balancer.dataset.near_duplicates import NearDuplicateIndex
from balancer.manifest.log.writer import ManifestLog
from balancer.manifest.rows import RunFacts
from balancer.manifest.runfile import RunInfo
from balancer.process.signals import StopSignal
from balancer.scheduling.adaptive import WordingCounts
from balancer.scheduling.progress import RunMeter, Snapshot
from balancer.scheduling.schedule import Schedule
from balancer.storage import Storage


def build_driver(
    config: Config,
    facts: RunFacts,
    schedule: Schedule,
    log: ManifestLog,
    generators: ActorPool,
    verifiers: ActorPool,
    writers: ActorPool,
    *,
    references: NearDuplicateIndex,
    stop: StopSignal,
    learned: Sequence[Any] = (),
    wording_counts: WordingCounts | None = None,
    parents: Parents | None = None,
    collapse: CollapseWatch | None = None,
    on_progress: Callable[[Snapshot], None] = lambda snapshot: None,
    note: Callable[[str], None] = lambda text: None,
    announce: Callable[[str], None] = lambda text: None,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[Sequence[Any], float], list[Any]] = wait,
    commit_thread: Executor | None = None,
    reviewed: tuple[Storage, RunInfo] | None = None,
) -> Driver:
    """`references` are the images that no candidate may copy, `learned` is what verifiers judge with besides
    the images: typicality and heads, or references to them. `parents` are the images that candidates are made
    from, and `collapse` stops the run where they all look alike. `reviewed` is the run that people may be
    reviewing meanwhile."""
    thread = commit_thread or ThreadPoolExecutor(1, "commit")
    committer = Committer(log, config.output, clock, thread)
    backoff = DiskFullBackoff(config.output.disk_full_wait_s, clock, note)
    meter = RunMeter(clock)
    batching = Batching(config, schedule, wording_counts, parents)
    recorder = Recorder(facts, committer, batching, collapse)
    writing = Writing(writers, facts, log, schedule, recorder, backoff, meter.accepted)
    verifying = Verifying(
        verifiers,
        config,
        facts,
        schedule,
        recorder,
        references,
        meter.candidates,
        following=writing,
        learned=tuple(learned),
    )
    return Driver(
        facts=facts,
        schedule=schedule,
        log=log,
        generating=Generating(generators, config, schedule, batching, Patience(clock), following=verifying),
        verifying=verifying,
        writing=writing,
        committer=committer,
        backoff=backoff,
        stopping=Stopping(stop, config.budget.max_hours, clock, collapse),
        notices=Notices(note, announce),
        meter=meter,
        on_progress=on_progress,
        wait=wait,
        reviewing=None if reviewed is None else Reviewing(*reviewed, log, schedule, clock, thread, note),
    )
