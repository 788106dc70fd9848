"""What all tests share: settings that keep them off the user's own files and from depending on speed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

PROJECT = Path(__file__).parent.parent

# How long an example takes says more of the machine than of the code.
hypothesis.settings.register_profile("balancer", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("balancer")


@pytest.fixture(scope="session", autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test finds the user's caches, Ray cluster or network; all share one rendered sample dataset."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BALANCER_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


@pytest.fixture(scope="session")
def project() -> Path:
    """The folder of pyproject.toml."""
    return PROJECT


@pytest.fixture(scope="session")
def reference_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference case on the embedded models, run once by the command line."""
    out = tmp_path_factory.mktemp("reference") / "run"
    command = [sys.executable, "-m", "balancer", "run", "configs/demo.yaml", "--out", str(out)]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray for all tests of this process; its two GPUs exist in Ray's books only."""
    import logging

    import ray

    from actors.cluster import start_here

    start_here({"num_cpus": 4, "num_gpus": 2, "log_to_driver": False, "logging_level": logging.ERROR})
    yield
    ray.shutdown()
