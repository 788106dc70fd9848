"""One run on real Ray with simulated workers of fixed service times, and when each call began and ended."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from actors.cluster.fleet import verifier_worker
from actors.run import run
from balancer.config.schema import Config
from benchmarking.watch import Spans, watched

SHAPE = 8
PASS_RATE = 0.7
SIDE = 64
VERIFY_S = 0.05


@dataclass(slots=True)
class Job:
    """What a run made; times are in seconds since 1970."""

    began: float
    ended: float = 0.0
    accepted: int = 0
    candidates: int = 0
    ready: list[float] = field(default_factory=list)
    """When each generator was ready to begin."""
    spans: Spans = field(default_factory=dict)


def job_config(images: int, generators: int, service_s: float, pass_rate: float) -> dict[str, Any]:
    """Images of ten classes and four lightings, up to four attempts each."""
    return {
        "classes": {f"class{n}": {"prompts": ["a picture", "one picture"]} for n in range(10)},
        "facets": {"light": {"values": {f"light{n}": {"prompts": ["so"]} for n in range(4)}}},
        "target": {"per_class": images // 10},
        "generation": {"width": SIDE, "height": SIDE, "batch_size": SHAPE},
        "attempts": {"max": 3, "fallback": {}},
        "actors": {"kind": "simulated", "generators": generators, "start_timeout_s": 600},
        "planning": {"acceptance": pass_rate, "seconds_per_candidate": service_s / SHAPE},
        "output": {"rejected_per_reason": 0},
    }


def run_job(images: int, generators: int, service_s: float, pass_rate: float = PASS_RATE) -> Job:
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder) / "dataset"
        (dataset / "class0").mkdir(parents=True)
        wanted = job_config(images, generators, service_s, pass_rate) | {"dataset": {"path": str(dataset)}}
        job = Job(time.time())
        writer = {"writer": "benchmarking.simulated_writer:Writer"}
        with watched(writer) as seen, mock.patch("actors.cluster.fleet.verifier_worker", _slow_verifier):
            result = run(Config.model_validate(wanted), Path(folder) / "run")
        job.ended = time.time()
        job.spans = seen.spans
        job.ready = seen.ready["generator"]
        job.accepted, job.candidates = result.accepted, result.candidates
        return job


def _slow_verifier(config: Config, on_gpu: bool) -> tuple[str, dict[str, Any]]:
    path, arguments = verifier_worker(config, on_gpu)
    return path, arguments | {"service_s": VERIFY_S}
