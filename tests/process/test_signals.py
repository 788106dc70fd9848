"""A signal ends a command from its first moment on, with a line, and nothing of Ray is left."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from actors.cluster import leftovers
from balancer.process.early import is_command
from balancer.process.signals import BURST_S, ENDING, StopSignal, caught

PROJECT = Path(__file__).parents[2]


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_raises_until_somebody_looks_and_is_noted_from_then_on(number):
    with caught() as stop:
        with pytest.raises(KeyboardInterrupt):
            send(number)
        assert (stop.number, stop.count) == (number, 1)
        stop.raises = False
        send(number)
        assert stop.count == 2


def test_a_signal_whose_exception_was_swallowed_is_found_at_the_next_look():
    with caught() as stop:
        with contextlib.suppress(KeyboardInterrupt):  # as in a weakref callback
            send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            stop.only_note()


def test_a_block_within_another_has_the_same_signals():
    with caught() as outer, caught() as inner:
        assert inner is outer


def test_handlers_are_the_users_again_afterwards():
    before = [signal.getsignal(number) for number in ENDING]
    with caught():
        assert signal.getsignal(signal.SIGHUP) not in before
    assert [signal.getsignal(number) for number in ENDING] == before


def test_under_nohup_a_hangup_is_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with caught() as stop:
            send(signal.SIGHUP)
            assert stop.number is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_handler_that_a_library_has_replaced_is_taken_back():
    with caught() as stop:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stop.take_again()
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)


def test_a_thread_gets_no_signals():
    found: list[StopSignal] = []

    def work() -> None:
        with caught() as stop:
            found.append(stop)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [StopSignal()]


# ---- commands ----------------------------------------------------------------------------------------

WAITING = """
import sys, types, click, time
def wait():
    print("waiting", flush=True)
    time.sleep(60)
status = click.Command("status", callback=wait)
sys.modules["balancer.cli.runs.status"] = types.SimpleNamespace(command=status)
from balancer.cli import main
main(["status"])
"""


@pytest.mark.parametrize("number", ENDING)
def test_any_command_ends_with_a_line_and_the_exit_code_of_a_shell(project, number):
    command, pipe = [sys.executable, "-c", WAITING], subprocess.PIPE
    with subprocess.Popen(command, cwd=project, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (128 + number, "interrupted\n")


EVALUATED = WAITING.replace("    time.sleep(60)", "    exec('time.sleep(60)')")


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_inside_exec_as_in_imports_has_its_own_exit_code(tmp_path, number):
    (tmp_path / "waiting.py").write_text(EVALUATED)
    assert "exec(" in EVALUATED
    assert told_when_ended(["waiting"], tmp_path, "waiting", number) == (128 + number, "interrupted\n")


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_while_the_command_is_imported_ends_it_with_a_line(tmp_path, number):
    (tmp_path / "click.py").write_text("import time; print('importing', flush=True); time.sleep(60)")
    command = ["balancer", "status", "nowhere"]
    assert told_when_ended(command, tmp_path, "importing", number) == (128 + number, "interrupted\n")


# Run before anything else: a command that waits, in the place of `status`.
STARTED_WITH = """
import sys, types, click, time
import balancer.process.signals
balancer.process.signals.STUCK_S = 0.5
def wait():
    print("waiting", flush=True)
    try:
        time.sleep(60)
    finally:
        LAST
status = click.Command("status", callback=wait)
sys.modules["balancer.cli.runs.status"] = types.SimpleNamespace(command=status)
"""


@pytest.mark.parametrize("gap_s", [0, 0.01])
@pytest.mark.parametrize("numbers", [*itertools.permutations(ENDING)])
def test_several_signals_at_once_end_a_command_as_one_of_them_does(tmp_path, numbers, gap_s):
    (tmp_path / "sitecustomize.py").write_text(STARTED_WITH.replace("LAST", "time.sleep(0.1)"))
    code, told = told_when_ended(["balancer", "status"], tmp_path, "waiting", *numbers, gap_s=gap_s)
    assert told == "interrupted\n"
    assert code - 128 in numbers


@pytest.mark.parametrize("number", ENDING)
def test_an_interrupted_command_that_hangs_all_the_same_is_ended(tmp_path, number):
    (tmp_path / "sitecustomize.py").write_text(STARTED_WITH.replace("LAST", "time.sleep(60)"))
    assert told_when_ended(["balancer", "status"], tmp_path, "waiting", number) == (
        128 + number,
        "interrupted\n",
    )


def test_a_command_that_is_done_skips_the_interpreters_own_end(tmp_path):
    late = "class Late:\n    def __del__(self):\n        print('late', flush=True)\nlate = Late()"
    (tmp_path / "sitecustomize.py").write_text(late)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(PROJECT)])}

    def printed(*command: str) -> bytes:
        return subprocess.check_output([sys.executable, *command], env=environment)

    assert printed("-c", "pass") == b"late\n"
    assert printed("-m", "balancer", "--version").startswith(b"balancer ")
    assert b"late" not in printed("-m", "balancer", "--version")


def test_a_burst_of_signals_raises_once_and_a_later_one_again(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("balancer.process.signals.time.monotonic", lambda: now[0])
    stop = StopSignal(raises=True)
    with pytest.raises(KeyboardInterrupt):
        stop(signal.SIGTERM)
    stop(signal.SIGHUP)
    assert (stop.number, stop.count) == (signal.SIGTERM, 2)
    now[0] += BURST_S
    with pytest.raises(KeyboardInterrupt):
        stop(signal.SIGHUP)


def told_when_ended(
    module: list[str], folder: Path, awaited: str, *numbers: int, gap_s: float = 0
) -> tuple[int, str]:
    """The exit code and stderr of `python -m module` that gets signals when it has said what is awaited."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(PROJECT)])}
    with subprocess.Popen(
        [sys.executable, "-m", *module],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{awaited}\n"
        for number in numbers:
            process.send_signal(number)
            time.sleep(gap_s)
        _, told = process.communicate(timeout=60)
    return process.returncode, told


@pytest.mark.parametrize(
    ("argv", "original", "expected"),
    [
        (["/usr/bin/balancer", "run"], ["python", "/usr/bin/balancer", "run"], True),
        (["-m"], ["python", "-m", "balancer", "run"], True),
        (["-m"], ["python", "-m", "pytest"], False),
        (["-c"], ["python", "-c", "import balancer"], False),
        (["train.py"], ["python", "train.py", "balancer"], False),
        ([], ["python"], False),
    ],
)
def test_a_program_that_imports_the_package_keeps_its_handlers(argv, original, expected):
    assert is_command(argv, original) == expected


# ---- leftovers -----------------------------------------------------------------------------------------

# A driver whose "Ray" is a process of its own session that ignores every signal it can.
DRIVER = """
import os, subprocess, sys, time
from actors.cluster.leftovers import ended_with_this_process
stubborn = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; time.sleep(600)"
with ended_with_this_process() as stop:
    started = subprocess.Popen([sys.executable, "-c", stubborn], start_new_session=True)
other = subprocess.Popen([sys.executable, "-c", stubborn], start_new_session=True)
print(started.pid, other.pid, flush=True)
if sys.argv[1] == "close":
    stop()
time.sleep(600)
"""


def is_alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked for in /proc")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, "close"])
def test_what_a_driver_started_ends_soon_after_it_and_nothing_else_does(project, end):
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(end)], cwd=project, stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdout is not None
        started, other = map(int, driver.stdout.readline().split())
        try:
            assert is_alive(started)
            if end != "close":
                driver.send_signal(end)
                driver.wait()
            give_up = time.monotonic() + leftovers.GRACE_S + 20
            while is_alive(started):
                assert time.monotonic() < give_up
                time.sleep(0.1)
            assert is_alive(other)
        finally:
            os.kill(other, signal.SIGKILL)
            driver.kill()
