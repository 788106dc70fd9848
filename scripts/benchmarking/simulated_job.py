"""One run on real Ray with simulated workers of fixed service times, and when each call began and ended."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.run import run
from actors.specs import SimulatedVerifierSpec, Workers
from balancer.config.schema import Config
from benchmarking.simulated_writer import IdleWriterSpec
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
        with watched() as seen:
            config = Config.model_validate(wanted)
            result = run(config, Path(folder) / "run", change_workers=_with_set_times)
        job.ended = time.time()
        job.spans = seen.spans
        job.ready = seen.ready["generator"]
        job.accepted, job.candidates = result.accepted, result.candidates
        return job


def _with_set_times(usual: Workers) -> Workers:
    assert isinstance(usual.verifier, SimulatedVerifierSpec)
    verifier = dataclasses.replace(usual.verifier, service_s=VERIFY_S)
    return dataclasses.replace(usual, verifier=verifier, writer=IdleWriterSpec())
