"""Ray's job API as `balancer submit` uses it, without a cluster; test_ray_job.py has one."""

from __future__ import annotations

import asyncio
import http.server
import threading
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from actors.cluster import jobs as ray_jobs
from actors.cluster.access import send_token
from actors.cluster.jobs import Jobs, job_server
from balancer.cli import main
from balancer.errors import ClusterError, UsageError
from balancer.submission.attempts import Attempt, run_id

TEXT = "first\nsecond line\n\nno end"


class Broken:
    """A client whose connection ends after each of `pieces`, and begins with the first line again."""

    def __init__(self, *pieces):
        self.pieces = list(pieces)

    async def tail_job_logs(self, id):
        piece = self.pieces.pop(0)
        for start in range(0, len(piece), 7):
            yield piece[start : start + 7]
        if self.pieces:
            raise RuntimeError("closed")


@pytest.mark.parametrize(
    "pieces", [[TEXT], [TEXT[:8], TEXT], ["", TEXT[:3], TEXT[:3], TEXT[:20], TEXT], [TEXT, TEXT]]
)
def test_each_line_of_a_job_is_shown_once_however_often_the_connection_breaks(pieces, monkeypatch):
    monkeypatch.setattr(ray_jobs, "POLL_S", 0)
    lines = []
    asyncio.run(ray_jobs._follow(Broken(*pieces), "id", lines.append))
    assert lines == ["first", "second line", "", "no end"]


def test_a_head_that_stays_away_ends_the_following(monkeypatch):
    monkeypatch.setattr(ray_jobs, "POLL_S", 0)
    with pytest.raises(RuntimeError):
        asyncio.run(ray_jobs._follow(Broken(*[""] * (ray_jobs.RECONNECTS + 2)), "id", print))


@pytest.fixture
def dashboard():
    """An http server that answers everything with `status`."""
    answer = SimpleNamespace(status=404, tokens=[])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answer.tokens.append(self.headers.get("authorization"))
            self.send_response(answer.status)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        answer.address = f"http://127.0.0.1:{server.server_port}"
        yield answer
        server.shutdown()
        thread.join()


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "abc123")


def test_a_dashboard_that_asks_nobody_for_a_token_is_refused_and_gets_none(dashboard, token):
    with pytest.raises(ClusterError, match="asks nobody for a token"):
        Jobs(dashboard.address)
    assert dashboard.tokens == [None]


def test_a_dashboard_that_refuses_the_token_is_one_line(dashboard, token):
    dashboard.status = 403
    with pytest.raises(ClusterError, match="does not take this token"):
        Jobs(dashboard.address)
    assert dashboard.tokens == [None, "Bearer abc123"]


def test_without_a_token_nothing_is_sent(dashboard, monkeypatch, tmp_path):
    dashboard.status = 401
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ClusterError, match="no token for this cluster"):
        Jobs(dashboard.address)
    assert not (tmp_path / "none").exists()


def test_a_dashboard_that_is_not_there_is_one_line(token):
    with pytest.raises(ClusterError, match="no Ray dashboard answers"):
        Jobs("http://127.0.0.1:9")


@pytest.mark.parametrize(
    "address",
    ["10.0.0.7:6379", "auto", "ray://h:10001", "http://", "http://h:99999", "http://h/?x=1", "my.module://h"],
)
def test_what_is_no_http_address_is_refused_before_anything_is_asked(address):
    with pytest.raises(ClusterError, match="not the http address"):
        job_server(address)


def test_an_address_given_wins_over_rays_variables(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://other:8265")
    assert job_server("https://h:8265/") == "https://h:8265"
    assert job_server(None) == "http://other:8265"
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(UsageError, match="no cluster"):
        job_server(None)


def test_a_mode_that_would_send_no_token_is_refused(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "open")
    with pytest.raises(ClusterError, match="RAY_AUTH_MODE"):
        send_token(required=True)


OUT = "s3://bucket/run"


@pytest.fixture
def job(monkeypatch):
    """A cluster with one job of the run folder."""
    last = SimpleNamespace(attempt=Attempt(run_id(OUT, "x"), "FAILED", 1, exit_code=3), error=None)

    class Fake:
        address = "http://h:8265"

        def __init__(self, address, *, allow_open):
            pass

        def attempts(self):
            return [last.attempt]

        def follow(self, id, line):
            if last.error is not None:
                raise last.error
            line("a line \x1b[31m s3://k:Pa55w0rd@b/x")
            return last.attempt

    monkeypatch.setattr(ray_jobs, "Jobs", Fake)
    return last


def followed():
    words = ["submit", "--out", OUT, "--address", "http://h:8265", "--logs", "--follow"]
    return CliRunner().invoke(main, words)


def test_following_ends_with_the_exit_code_of_the_run_and_shows_nothing_harmful(job):
    result = followed()
    assert result.exit_code == 3
    assert result.stdout == "a line \\x1b[31m s3://***@b/x\n"


def test_ctrl_c_leaves_the_run_alone_and_says_how_to_look_again(job):
    job.error = KeyboardInterrupt()
    result = followed()
    assert result.exit_code == 130
    assert f"balancer submit --out {OUT} --address http://h:8265 --logs --follow" in result.stderr


@pytest.mark.parametrize(
    ("status", "exit_code", "code"),
    [("SUCCEEDED", 0, 0), ("STOPPED", None, 143), ("FAILED", -9, 137), ("FAILED", None, 1), ("FAILED", 5, 5)],
)
def test_every_end_of_a_job_has_its_exit_code(job, status, exit_code, code):
    job.attempt = Attempt(job.attempt.id, status, 1, exit_code, "pip failed\nmore")
    assert followed().exit_code == code
