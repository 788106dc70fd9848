"""Under limits with which Ray would hang, a run says which one, and how to raise it, before it writes."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner

from actors.cluster.process_limits import refuse_tight_limits
from balancer.cli import main
from balancer.errors import UnavailableError
from balancer.process.limits import refuse_too_few_processes

pytestmark = pytest.mark.decoders

KINDS = {
    "n": resource.RLIMIT_NOFILE,
    "f": resource.RLIMIT_FSIZE,
    "v": resource.RLIMIT_AS,
    "u": resource.RLIMIT_NPROC,
}


def limits(monkeypatch, **set_to: tuple[int, int]) -> None:
    endless = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    by_kind = {KINDS[flag]: limit for flag, limit in set_to.items()}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: by_kind.get(kind, endless))


@pytest.mark.parametrize(
    ("flag", "limit", "what"),
    [
        ("n", 127, "open files"),
        ("f", 1_000_000, "the bytes of a file"),
        ("v", 8_000_000_000, "bytes of address"),
    ],
)
def test_a_limit_below_what_ray_needs_is_told_with_the_command_that_raises_it(monkeypatch, flag, limit, what):
    limits(monkeypatch, **{flag: (limit, resource.RLIM_INFINITY)})
    with pytest.raises(
        UnavailableError, match=f"the limit on {what}.* is {limit:,}, and Ray .* needs [0-9,]+$"
    ) as caught:
        refuse_tight_limits()
    assert caught.value.hint.startswith(f"raise it: `ulimit -{flag} ")


def test_a_limit_that_only_an_administrator_can_raise_says_so(monkeypatch):
    limits(monkeypatch, n=(64, 64))
    with pytest.raises(UnavailableError) as caught:
        refuse_tight_limits()
    assert caught.value.hint.startswith("ask an administrator to raise it")


def test_a_user_who_may_have_no_threads_is_told_before_arrow_waits_for_one(monkeypatch):
    limits(monkeypatch, u=(3, 3))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(UnavailableError, match="limit on processes and threads is 3, and balancer needs 16"):
        refuse_too_few_processes()
    monkeypatch.setattr("os.geteuid", lambda: 0)  # whom the limit does not bind
    refuse_too_few_processes()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "out of memory"),
        (RuntimeError("can't start new thread"), "cannot start another thread"),
        (
            ImportError("x.so: failed to map segment from shared object"),
            "not enough memory to load a library",
        ),
    ],
)
def test_what_the_system_does_not_give_is_one_line(monkeypatch, error, reason):
    def fail() -> None:
        raise error

    status = click.Command("status", callback=fail)
    monkeypatch.setitem(sys.modules, "balancer.cli.runs.status", SimpleNamespace(command=status))
    ended = CliRunner().invoke(main, ["status"])
    assert ended.exit_code == 4
    assert ended.stderr.startswith(f"error: {reason}\nhint: raise the limits of the process")


def test_enough_is_enough(monkeypatch):
    limits(monkeypatch, n=(128, 128), f=(10**12, 10**12), v=(10**13, 10**13))
    refuse_tight_limits()


def test_run_ends_at_once_and_writes_nothing(project, tmp_path):
    command = ["sh", "-c", 'ulimit -n 64; exec "$@"', "sh", sys.executable, "-m", "balancer"]
    run = ["run", "configs/demo.yaml", "--out", str(tmp_path / "run")]
    ended = subprocess.run(
        [*command, *run], cwd=project, capture_output=True, text=True, check=False, timeout=100
    )
    assert ended.returncode == 4
    assert re.search(
        r"error: the limit on open files is 64, and Ray on this machine needs 128\n", ended.stderr
    )
    assert not (tmp_path / "run").exists()
