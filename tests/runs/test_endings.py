"""A process that read rows of a manifest ends, with the exit code it asked for, however it leaves a scan."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarking.endings import ENDINGS, PLACES, leave, make_runs, reach

AT_ONCE = 2


@pytest.fixture(scope="module")
def uris(tmp_path_factory: pytest.TempPathFactory, s3_server: str) -> Iterator[dict[str, str]]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in reach(s3_server).items():
            patch.setenv(name, value)
        yield make_runs(tmp_path_factory.mktemp("endings"), "s3://bucket/endings")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("place", PLACES)
def test_a_process_that_leaves_a_scan_ends(uris, place, ending):
    """Before Arrow was kept from Python, nearly every one in a bucket or a compacted copy hung."""
    assert leave(ending, uris[place]) is None


@pytest.mark.soak
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("place", PLACES)
def test_thirty_processes_that_leave_a_scan_end(uris, place, ending):
    with ThreadPoolExecutor(AT_ONCE) as pool:
        problems = list(pool.map(leave, [ending] * 30, [uris[place]] * 30))
    assert problems == [None] * 30
