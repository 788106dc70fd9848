"""What all tests share: settings that keep them off the user's own files and from depending on speed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import filelock
import hypothesis
import pytest

from tests.fault_proxy import ACCESS_KEY, LATE, SECRET_KEY, STALL, FaultProxy

PROJECT = Path(__file__).parent.parent

# How long an example takes says more of the machine than of the code.
hypothesis.settings.register_profile("balancer", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("balancer")


LONG = """
    whole/test_main_job.py models/test_families.py cluster/test_ray_job.py evaluation/test_evaluate.py
    whole/test_run.py whole/test_faults.py cluster/test_nodes.py whole/test_flaws.py
    whole/test_growing_run.py whole/test_head_run.py runs/test_crashes.py cluster/test_pool.py
    whole/test_adapted_run.py verification/test_calibrate.py manifest/test_manifest_log_objects.py
    manifest/test_compaction.py runs/test_growing.py cluster/test_ray_access.py runs/test_reproduce.py
    conditioning/test_image_to_image.py models/test_lora_loading.py
""".split()
"""Files that take longest, and so come first: one that begins last keeps the other processes waiting."""

SLOW = {
    *LONG,
    *"""
    browser cluster models cli/test_api.py cli/test_bad_input.py cli/test_doctor.py cli/test_run_command.py
    evaluation/test_training_of_arms.py training/test_recommended.py
    config/test_legacy.py config/test_scaffold.py dataset/test_audit_decoders.py
    dataset/test_facet_tables.py dataset/test_leaks.py dataset/test_sample.py export/test_export.py
    export/test_export_readers.py maintenance/test_repair.py manifest/test_compaction.py
    manifest/test_manifest_log.py manifest/test_manifest_log_objects.py process/test_process_limits.py
    process/test_streams.py review/test_session.py runs/test_earlier_run.py runs/test_endings.py
    runs/test_rejudge.py
    storage/test_objects.py storage/test_runs_in_buckets.py storage/test_storage_contract.py
    text/test_hostile_names.py training/test_embedding.py training/test_snippets.py
    training/test_tour.py training/test_training.py training/test_training_in_buckets.py
    conditioning/test_conditioned_run.py conditioning/test_simulated_run.py dataset/test_real_images.py
    evaluation/test_gate.py verification/test_heads.py verification/test_unjudged.py
    verification/test_domain.py verification/test_labelled.py
    weights/test_chat_template.py weights/test_hostile_models.py whole/test_benchmarks.py
    review/test_review_command.py watch/test_in_buckets.py
    whole/test_docs.py whole/test_family_run.py whole/test_fuzz.py whole/test_ladder_run.py
    whole/test_layouts.py whole/test_wheel.py
    """.split(),
}
"""Folders and files that `scripts/test --fast` skips: they start Ray, load models or take long."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fast", action="store_true", help="without tests that start Ray, load models or take long"
    )


def _within_tests(path: Path) -> str:
    return path.relative_to(PROJECT / "tests").as_posix()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if not config.getoption("fast"):
        return None
    return _within_tests(collection_path) in SLOW or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(_within_tests(item.path), len(LONG)))


@pytest.fixture(scope="session", autouse=True)
def _signals() -> Iterator[None]:
    """Processes of tests get the usual signals, whatever started the tests: nohup and `&` ignore some."""
    before = {signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_DFL)}
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all test processes."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(autouse=True)
def _decoders_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process starts for each audit of a few images, but in tests of those processes: `decoders`."""
    from tests.dataset.here import read_here

    if request.node.get_closest_marker("decoders") is None:
        read_here(monkeypatch)


@pytest.fixture(scope="session", autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test finds the user's caches, Ray cluster or network; all share one rendered sample dataset, and
    what the verifier saw in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BALANCER_CACHE", str(_shared_folder(tmp_path_factory) / "cache"))
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server with one bucket, `bucket`."""
    script = PROJECT / "tests" / "s3_server.py"
    with subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        urllib.request.urlopen(urllib.request.Request(f"{url}/bucket", method="PUT")).close()
        yield url
        process.stdin.close()


@pytest.fixture
def proxy(
    s3_server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[FaultProxy]:
    """All requests to S3, also those of processes that the test starts, go through this proxy.

    Clients wait long for an answer, so that no test depends on speed, but for those whose parameter `fault`
    is that none comes.
    """
    fault = getattr(request.node, "callspec", None) and request.node.callspec.params.get("fault")
    with FaultProxy(s3_server).running() as proxy:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        monkeypatch.setenv("AWS_REGION", "eu-west-3")
        monkeypatch.setenv("AWS_TIMEOUT", "2s" if fault in (STALL, LATE) else "30s")
        monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        yield proxy


@pytest.fixture
def run_uri(proxy: FaultProxy) -> str:
    """The address of a run that no other test uses."""
    return f"s3://bucket/runs/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def project() -> Path:
    """The folder of pyproject.toml."""
    return PROJECT


@pytest.fixture(scope="session")
def reference_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference case on the embedded models, run once by the command line for all test processes."""
    shared = _shared_folder(tmp_path_factory)
    out = shared / "reference" / "run"
    command = [sys.executable, "-m", "balancer", "run", "configs/demo.yaml", "--out", str(out)]
    with filelock.FileLock(shared / "reference.lock"):
        if not out.exists():
            result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
            assert result.returncode == 0, result.stderr
    return out


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray for all tests of this process; its two GPUs exist in Ray's books only."""
    import logging

    import ray

    from actors.cluster.connect import start_here

    start_here({"num_cpus": 4, "num_gpus": 2, "log_to_driver": False, "logging_level": logging.ERROR})
    yield
    ray.shutdown()


@pytest.fixture
def here(ray_session: None) -> Iterator[None]:
    """Runs have their actors in this process: for tests in which nothing befalls an actor."""
    from tests.resident import actors_here

    with actors_here():
        yield


@pytest.fixture(scope="module")
def all_here(ray_session: None) -> Iterator[None]:
    """As `here`, for all tests of a file and what they share: models are loaded once."""
    from tests.resident import actors_here

    with actors_here():
        yield
