"""`balancer review` and `balancer watch` as processes: an address, a page, an end."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from click.testing import CliRunner

from balancer.cli import main
from balancer.storage import LocalStorage
from tests.review.small_run import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    make_run(LocalStorage(folder), images=3).close("complete")
    return folder


@pytest.mark.parametrize(
    ("command", "number", "code", "last"),
    [
        ("review", signal.SIGINT, 0, "0 decisions saved; 0 of 3 decided"),
        ("watch", signal.SIGTERM, 143, None),
    ],
)
def test_it_prints_an_address_answers_there_and_ends_by_a_signal(run, command, number, code, last):
    words = [sys.executable, "-m", "balancer", command, str(run)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        lines = []
        while not (lines and lines[-1].startswith("http://127.0.0.1:")):
            lines.append(process.stdout.readline())
            assert lines[-1], process.stderr.read()
        url = lines[-1].strip()
        with urllib.request.urlopen(url) as answer:
            assert b"<main" in answer.read()
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(url.rsplit("/", 2)[0] + "/another/")
        process.send_signal(number)
        rest, told = process.communicate(timeout=60)
    assert process.returncode == code, told
    assert "Traceback" not in told
    assert rest.strip() == (last or "")


@pytest.mark.parametrize("name", ["", "a" * 101, "a\nb", "\x1b[31m"])
def test_a_reviewer_has_a_name_that_can_be_printed(run, name):
    shown = CliRunner().invoke(main, ["review", str(run), "--as", name])
    assert (shown.exit_code, shown.stderr.splitlines()[0]) == (
        2,
        "error: --as: a name has 1 to 100 printable characters",
    )


def test_a_queue_that_there_is_not_is_refused_before_anything_listens(run):
    shown = CliRunner().invoke(main, ["review", str(run), "--queue", "estimat"])
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert "did you mean 'estimate'?" in shown.stderr
