"""The batch script of `balancer submit --slurm`, run by bash with a srun that runs everything here."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from balancer.cli import main
from tests.submission.here import golden

JOB = """
classes: {a: {prompts: ["$HOME `id` 'x'"]}}
target: {per_class: 2}
actors: {generators: 2}
"""

TOOLS = {
    "srun": """
for word; do
    case "$word" in --*) shift ;; *) break ;; esac
done
echo "$@" >> "$CALLS"
exec "$@"
""",
    "scontrol": "echo node-1; echo node-2\n",
    "hostname": 'echo "127.1.2.3 10.0.0.1"\n',
    "ray": 'echo "token $RAY_AUTH_MODE ${#RAY_AUTH_TOKEN}" >> "$CALLS"; exec sleep 60\n',
    "python": """
if [ "$1" = -c ]; then # waits for the nodes
    while [ "$(grep -c ^token "$CALLS")" -lt "$4" ]; do sleep 0.05; done
    exit 0
fi
cp "$5" "$CALLS.json" 2>/dev/null || cp "$4" "$CALLS.json"
if [ -n "$WAITS" ]; then
    trap 'echo stopped >> "$CALLS"; exit 143' TERM
    echo started >> "$CALLS"
    while :; do sleep 0.05; done
fi
exit "$CODE"
""",
}


def printed(*options: str) -> str:
    words = ["submit", "job.yaml", "--out", "s3://bucket/it's a run", "--slurm", *options]
    result = CliRunner().invoke(main, words)
    return result.stdout if result.exit_code == 0 else result.stderr


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(JOB)
    for name, text in TOOLS.items():
        tool = tmp_path / "bin" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f"#!/bin/bash\n{text}")
        tool.chmod(0o755)
    return tmp_path


def started(folder: Path, **variables: str) -> subprocess.Popen[str]:
    Path("run.sh").write_text(printed("--setup", "greeting=hello"))
    slurm = {"SLURM_JOB_NODELIST": "node-[1-2]", "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"}
    environment = {
        "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
        "CALLS": str(folder / "calls"),
        "SLURM_CPUS_PER_TASK": "8",
        "RAY_HEAD_WAIT_S": "0",
        "WAITS": "",
        "CODE": "0",
    }
    return subprocess.Popen(
        ["bash", "run.sh"], env=environment | slurm | variables, stdout=subprocess.PIPE, text=True
    )


def test_the_script_is_what_was_read_by_eye(folder):
    shown = printed(
        "--partition", "gpu", "--account", "lab", "--time", "12:00:00", "--setup", "module load cuda",
        "--memory", "64Gi", "--limit", "8",
    )  # fmt: skip
    assert shown == golden("slurm.sh", shown)


def test_bash_finds_no_fault_in_the_script(folder):
    Path("run.sh").write_text(printed())
    subprocess.run(["bash", "-n", "run.sh"], check=True)


@pytest.mark.parametrize(("ended", "code"), [("0", 0), ("3", 0), ("1", 1), ("5", 5)])
def test_the_script_brings_ray_up_runs_once_and_ends_as_the_run_does(folder, ended, code):
    process = started(folder, CODE=ended)
    process.communicate(timeout=60)
    assert process.returncode == code
    calls = (folder / "calls").read_text().splitlines()
    runs = [call for call in calls if " -m balancer run " in f" {call}"]
    assert len(runs) == 1
    assert "s3://bucket/it's a run" in runs[0]
    assert "--address 127.1.2.3:20007" in runs[0]
    heads = [call for call in calls if call.startswith("ray start")]
    assert sum("--head" in call for call in heads) == 1
    assert sum("--address=127.1.2.3:20007" in call for call in heads) == 1
    assert calls.count("token token 64") == 2


def test_the_token_is_in_no_command_line_and_not_in_the_script(folder):
    process = started(folder)
    output, _ = process.communicate(timeout=60)
    seen = (folder / "calls").read_text() + output + Path("run.sh").read_text()
    assert not [word for word in seen.split() if len(word) == 64 and int_or_none(word) is not None]


def int_or_none(word: str) -> int | None:
    try:
        return int(word, 16)
    except ValueError:
        return None


def test_the_config_arrives_whatever_a_shell_would_make_of_it(folder):
    started(folder).communicate(timeout=60)
    from balancer.config.load import load_config

    assert load_config(folder / "calls.json") == load_config("job.yaml")


def test_a_run_that_is_out_of_time_is_told_and_waited_for(folder):
    process = started(folder, WAITS="yes")
    calls = folder / "calls"
    give_up = time.monotonic() + 60
    while not calls.exists() or "started" not in calls.read_text():
        assert time.monotonic() < give_up
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert "stopped" in calls.read_text()
    assert process.returncode == 143


@pytest.mark.parametrize(
    "options",
    [
        ["--partition", "a b"],
        ["--time", "1\n#SBATCH --x"],
        ["--account", "$(id)"],
        ["--setup", "a\nb"],
        ["--image", "b:1"],
        ["--kubernetes"],
        ["--address", "http://x:8265"],
    ],
)
def test_what_sbatch_would_take_for_something_else_is_refused(folder, options):
    assert printed(*options).startswith("error: --")
