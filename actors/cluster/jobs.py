"""Ray's job API: submit a job, look at it, stop it, follow what it prints.

The address is that of the dashboard, `http://HEAD:8265`. Ray lets its environment variables override the
address that a client is given; here the address given wins.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.dashboard.modules.job.sdk import JobSubmissionClient
from ray.exceptions import AuthenticationError

from actors.cluster.access import send_token
from balancer.errors import BalancerError, ClusterError, UsageError, first_line
from balancer.submission.attempts import Attempt
from balancer.text.safetext import has_credentials

VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")

PROBE_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 120.0
"""The head may look for a node to start the job on."""

POLL_S = 1.0
RECONNECTS = 30
"""In a row, `POLL_S` apart, while a job is followed: a head that restarts is back within that time."""

STOP_WAIT_S = 60
"""Ray kills a job that has not ended so long after it was told to stop; a run needs seconds to commit."""

TAKEN = "already exists"

ADDRESS_HINT = "give the address of the cluster's dashboard, --address http://HEAD:8265"


CHATTY = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""Loggers that say where files are uploaded from."""


class _Client(JobSubmissionClient):
    """Ray's own client waits for ever for a server that says nothing."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        options.setdefault("timeout", REQUEST_TIMEOUT_S)
        response: requests.Response = super()._do_request(method, endpoint, **options)
        return response


def job_server(address: str | None) -> str:
    """The http address of a dashboard, as given or from Ray's environment variables. ClusterError for
    anything else."""
    named = address or next((os.environ[name] for name in VARIABLES if os.environ.get(name)), None)
    if named is None:
        raise UsageError("no cluster to submit to", hint=ADDRESS_HINT)
    if "@" in named or has_credentials(named):
        raise ClusterError(
            "the address of the Ray cluster holds a user or a password",
            hint="give http://HEAD:8265; the token comes from the environment, RAY_AUTH_TOKEN",
        )
    try:
        parts = urlsplit(named)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment:
        raise ClusterError(f"{named[:200]!r} is not the http address of a Ray dashboard", hint=ADDRESS_HINT)
    return named.rstrip("/")


class Jobs:
    """The jobs of the cluster at an http address. Every method raises ClusterError if the cluster does not
    answer or refuses."""

    def __init__(self, address: str, *, allow_open: bool = False) -> None:
        self.address = address
        for name in CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
        with _as_lines(address):
            _refuse_silent_or_open(address, allow_open)
            send_token(required=not allow_open)
            with _without(VARIABLES):
                self._client = _Client(address)

    def attempts(self) -> list[Attempt]:
        with _as_lines(self.address):
            return [_attempt(details) for details in self._client.list_jobs() if details.submission_id]

    def find(self, id: str) -> Attempt:
        with _as_lines(self.address):
            return _attempt(self._client.get_job_info(id))

    def submit(self, id: str, command: str, runtime_env: dict[str, Any]) -> bool:
        """Whether this call has submitted it: False if there is a job of this id already."""
        with _as_lines(self.address):
            try:
                self._client.submit_job(entrypoint=command, submission_id=id, runtime_env=runtime_env)
            except RuntimeError as error:
                if TAKEN in str(error):
                    return False
                raise
        return True

    def stop(self, id: str) -> bool:
        """Whether it was running."""
        with _as_lines(self.address):
            return bool(self._client.stop_job(id))

    def logs(self, id: str) -> str:
        with _as_lines(self.address):
            return str(self._client.get_job_logs(id))

    def follow(self, id: str, line: Callable[[str], None]) -> Attempt:
        """Call `line` with each line that the job prints, from its first one, until it has ended."""
        with _as_lines(self.address):
            asyncio.run(_follow(self._client, id, line))
        while (attempt := self.find(id)).is_active:
            time.sleep(POLL_S)
        return attempt


async def _follow(client: JobSubmissionClient, id: str, line: Callable[[str], None]) -> None:
    """Each connection begins with the first line again; what was shown before is passed over."""
    shown, rest, failures = 0, "", 0
    while True:
        passed = 0
        try:
            async for text in _texts(client, id):
                new = text[max(0, shown - passed) :]
                passed += len(text)
                if not new:
                    continue
                shown, failures = max(shown, passed), 0
                *lines, rest = (rest + new).split("\n")
                for each in lines:
                    line(each)
            break
        except (RuntimeError, aiohttp.ClientError):
            failures += 1
            if failures > RECONNECTS:
                raise
            await asyncio.sleep(POLL_S)
    if rest:
        line(rest)


def _texts(client: JobSubmissionClient, id: str) -> AsyncIterator[str]:
    texts: AsyncIterator[str] = client.tail_job_logs(id)
    return texts


def _attempt(details: Any) -> Attempt:
    return Attempt(
        id=str(details.submission_id),
        status=str(details.status),
        start_ms=details.start_time or 0,
        exit_code=details.driver_exit_code,
        message=details.message or "",
    )


def _refuse_silent_or_open(address: str, allow_open: bool) -> None:
    """One request without a token, for a job that cannot be."""
    try:
        answer = requests.get(
            f"{address}/api/jobs/balancer-probe", timeout=PROBE_TIMEOUT_S, allow_redirects=False
        )
    except requests.RequestException as error:
        raise ClusterError(
            f"no Ray dashboard answers at {address}: {type(error).__name__}", hint=ADDRESS_HINT
        ) from error
    if answer.status_code in (200, 404) and not allow_open:
        raise ClusterError(
            f"Ray at {address} asks nobody for a token: whoever reaches it can run code there",
            hint="start it with RAY_AUTH_MODE=token (`ray get-auth-token --generate` makes a token); "
            "or, on a network that you trust, set actors.allow_open_cluster",
        )


@contextlib.contextmanager
def _as_lines(address: str) -> Iterator[None]:
    try:
        yield
    except BalancerError:
        raise
    except AuthenticationError as error:
        raise ClusterError(
            f"Ray at {address} does not take this token",
            hint="set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, to the token that the cluster was started with",
        ) from error
    except (RuntimeError, ValueError, OSError, aiohttp.ClientError) as error:
        raise ClusterError(f"Ray at {address}: {first_line(error)}", hint=ADDRESS_HINT) from error


@contextlib.contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ |= before


def runtime_env(folder: Path, packages: list[str]) -> dict[str, Any]:
    """What the job runs in: `folder` as its working folder, with `packages` for pip. The only variable that
    it sets is no secret: whoever sees the dashboard sees them."""
    wanted: dict[str, Any] = {
        "working_dir": str(folder),
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
    }
    return wanted | ({"pip": packages} if packages else {})
