"""A command whose standard streams are closed, full, or without a reader."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from balancer.storage import open_storage
from tests.manifest_samples import image_bytes, row, start

STREAMS = ("stdin", "stdout", "stderr")


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    """A folder with a run, a dataset and a config."""
    root = tmp_path_factory.mktemp("streams")
    storage, rows = open_storage(root / "run", create=True), [row("basic/dim/0000"), row("basic/dim/0001")]
    for each in rows:
        storage.publish(each["file_name"], image_bytes(each["id"]))
    start(storage).commit(rows)
    (root / "data/a").mkdir(parents=True)
    Image.new("RGB", (16, 16), "red").save(root / "data/a/0.png")
    document = {
        "dataset": {"path": "data"},
        "classes": {"a": {"prompts": ["an a"]}},
        "target": {"per_class": 4},
        "generation": {"width": 64, "height": 64},
    }
    (root / "job.json").write_text(json.dumps(document))
    return root


COMMANDS = {
    "status": ["status", "run"],
    "status --json": ["status", "run", "--json"],
    "query": ["query", "run"],
    "query --format csv": ["query", "run", "--format", "csv"],
    "query of nothing": ["query", "run", "status = 'rejected'"],
    "fsck": ["fsck", "run"],
    "audit": ["audit", "data"],
    "plan": ["plan", "job.json", "--no-preflight"],
    "init": ["init", "data"],
    "gc": ["gc", "run"],
    "--help": ["--help"],
    "plan --help": ["plan", "--help"],
}


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "balancer", *args]


def environment(project) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(project)}


@pytest.mark.parametrize("name", COMMANDS)
def test_results_that_cannot_be_written_are_one_line_and_exit_code_4(project, places, name):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command(*COMMANDS[name]), cwd=places, env=environment(project), stdout=full,
            stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    told = [
        line for line in done.stderr.splitlines() if not line.startswith(("hint: ", "note: ", "warning: "))
    ]
    assert (done.returncode, len(told)) == (4, 1), done.stderr
    assert told[0].startswith("error: ")
    assert "no space left on device" in told[0]


def test_a_version_that_cannot_be_written_says_what_could_not(project, places):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command("--version"), cwd=places, env=environment(project), stdout=full,
            stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        4,
        "error: standard output cannot be written: no space left on device\n",
    )


@pytest.mark.parametrize("name", ["status", "query of nothing"])
def test_what_cannot_be_written_to_stderr_changes_nothing(project, places, name):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command(*COMMANDS[name]), cwd=places, env=environment(project), stderr=full,
            stdout=subprocess.PIPE, check=False,
        )  # fmt: skip
    usual = subprocess.run(
        command(*COMMANDS[name]), cwd=places, env=environment(project), capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (usual.returncode, usual.stdout)


def test_an_error_that_cannot_be_told_keeps_its_exit_code(project, places):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command("status", "nowhere"), cwd=places, env=environment(project), stdout=full, stderr=full,
            check=False,
        )  # fmt: skip
    assert done.returncode == 2


COMBINATIONS = [names for count in (1, 2, 3) for names in itertools.combinations(STREAMS, count)]


@pytest.mark.parametrize("closed", COMBINATIONS, ids=" ".join)
def test_streams_that_are_closed_end_no_command_in_silence(project, places, closed):
    numbers = [STREAMS.index(name) for name in closed]
    line = " ".join(f"{number}{'<' if number == 0 else '>'}&-" for number in numbers)
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {line}', "sh", *command("query", "run")], cwd=places,
        env=environment(project), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == (4 if "stdout" in closed else 0)
    assert ("accepted" in done.stdout) == ("stdout" not in closed)
    expected = "error: standard output cannot be written: bad file descriptor\n"
    assert done.stderr == (expected if "stdout" in closed and "stderr" not in closed else "")


def test_no_file_of_a_command_gets_the_number_of_a_closed_stream(project, places, tmp_path):
    script = (
        "import os\nfrom balancer.cli import streams\nstreams.prepare()\n"
        f"fd = os.open({str(tmp_path / 'file')!r}, os.O_CREAT | os.O_WRONLY)\nassert fd > 2, fd\n"
        "os.set_inheritable(fd, True)\nassert os.system('exit 7 2>/dev/null') == 7 << 8\n"
    )
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh", sys.executable, "-c", script], cwd=project, check=False
    )
    assert done.returncode == 0


def test_a_reader_of_stderr_that_goes_away_ends_a_command_as_one_of_stdout_does(project, places):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        command(*COMMANDS["query of nothing"]), cwd=places, env=environment(project),
        stdout=subprocess.DEVNULL, stderr=writing, check=False,
    )  # fmt: skip
    os.close(writing)
    assert done.returncode == 141


def test_names_that_an_encoding_lacks_are_escaped(project, tmp_path):
    (tmp_path / "data/é☃").mkdir(parents=True)
    Image.new("RGB", (16, 16), "red").save(tmp_path / "data/é☃/0.png")
    settings = environment(project) | {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    for extra in ([], ["--json"]):
        done = subprocess.run(
            command("audit", "data", *extra), cwd=tmp_path, env=settings, capture_output=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"2603" in done.stdout or "☃".encode() in done.stdout


def test_a_working_folder_that_is_gone_is_one_line(project, places, tmp_path):
    script = 'mkdir "$1" && cd "$1" && rmdir "$1" && shift && exec "$@"'
    folder = tmp_path / "gone"
    for args in (COMMANDS["status"], ["run", "job.json"], COMMANDS["audit"], ["doctor"]):
        done = subprocess.run(
            ["sh", "-c", script, "sh", str(folder), *command(*args)], env=environment(project),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 4
        assert done.stderr == "error: the working folder is gone\nhint: cd to a folder that is there\n"
