"""Connect to Ray, or start it."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray._private import accelerators
from ray._private import utils as ray_utils
from ray._private import worker as ray_worker

from actors.cluster.access import (
    refuse_bad_folder,
    refuse_open_cluster,
    started_on_this_machine,
    to_oneself,
)
from actors.cluster.head_processes import few_head_processes
from actors.cluster.leftovers import ended_with_this_process
from actors.cluster.process_limits import refuse_tight_limits
from actors.cluster.sizing import Resources
from balancer.errors import ClusterError, InterruptedRun, UsageError, first_line
from balancer.process.signals import StopSignal, caught
from balancer.text.safetext import has_credentials, shortened

ANSWER_TIMEOUT_S = 5.0
"""A Ray head that is there answers a TCP connection within milliseconds, across continents in one second."""

START_ATTEMPTS = 3
"""Ray's own processes must report within 30 s of starting, which a loaded machine can miss once."""

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_ADDRESS = re.compile(
    rf"(?:(?P<name>{_LABEL}(?:\.{_LABEL})*\.?)|\[(?P<ipv6>[0-9A-Fa-f:.]{{2,45}}(?:%\w{{1,20}})?)\])"
    r":(?P<port>[0-9]{1,5})",
    re.ASCII,
)
_LONGEST_HOST = 253

_taken = threading.Lock()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """For as long as a run connects to Ray, uses it and leaves it: UsageError if another run of this process
    does. Runs on a Ray that the user has connected to share it."""
    if ray.is_initialized() and not _taken.locked():
        yield
        return
    if not _taken.acquire(blocking=False):
        raise UsageError(
            "another run is under way in this process, and Ray can be had once in a process only",
            hint="start the other one when this one has ended, in a process of its own, or call ray.init "
            "before both",
        )
    try:
        yield
    finally:
        _taken.release()


@contextlib.contextmanager
def connected(address: str | None, allow_open: bool = False) -> Iterator[Resources]:
    """Ray for the length of a run: the cluster at `address` or `RAY_ADDRESS`, else one on this machine.

    A connection that was open before is used and left open; ClusterError if `address` is another cluster's.
    With `allow_open` the cluster need not ask for a token.
    """
    if ray.is_initialized():
        _refuse_another(address)
        yield _resources()
        return
    with _notices_dropped():
        end_leftovers = _connect(_named(address), allow_open)
        try:
            yield _resources()
        finally:
            ray.shutdown()
            end_leftovers()


@contextlib.contextmanager
def _notices_dropped() -> Iterator[None]:
    """What Ray's processes say of workers that died is printed to standard output, in colour, whatever
    `log_to_driver` is: among the results of a command. The pools say it in their own words."""
    before = ray_worker.print_to_stdstream
    ray_worker.print_to_stdstream = lambda data, ignore_prefix: None
    try:
        yield
    finally:
        ray_worker.print_to_stdstream = before


@contextlib.contextmanager
def signals_go_to(stop: StopSignal) -> Iterator[None]:
    """`ray.init` would put two handlers of its own in the place of the one for SIGTERM, and its core aborts
    the process if an exception leaves it half made."""
    set_handler, connect = ray_utils.set_sigterm_handler, ray_worker.connect

    def connect_whole(*arguments: Any, **options: Any) -> None:
        if stop.raises:
            stop.check()
        stop.raises, raises = False, stop.raises
        try:
            connect(*arguments, **options)
        finally:
            stop.raises = raises
            stop.take_again()
        if raises:
            stop.check()

    ray_utils.set_sigterm_handler, ray_worker.connect = (lambda handler: None), connect_whole
    try:
        yield
    finally:
        ray_utils.set_sigterm_handler, ray_worker.connect = set_handler, connect


@contextlib.contextmanager
def ended_by_signals(message: str) -> Iterator[StopSignal]:
    """SIGINT, SIGTERM and SIGHUP end the work from its first moment on, as InterruptedRun with this message.
    So does what they make of Ray, which may get them first."""
    with caught() as stop, signals_go_to(stop):
        try:
            stop.check()
            yield stop
        except (KeyboardInterrupt, ClusterError) as error:
            if stop.number is None:
                raise
            raise interrupted(stop.number, message) from error


def end_if_stopped(stop: StopSignal, message: str) -> None:
    """For loops, which look at the signal themselves."""
    if stop.number is not None:
        raise interrupted(stop.number, message)


def interrupted(number: int, message: str) -> InterruptedRun:
    return InterruptedRun(
        f"interrupted{message}", signal_number=number, hint="the same command resumes from here"
    )


def refuse_silent(address: str | None) -> None:
    """ClusterError if a cluster is named, by `address` or `RAY_ADDRESS`, and does not answer;
    UnavailableError if Ray would hang on this machine. Checked before anything is written for a run on it."""
    if ray.is_initialized():
        _refuse_another(address)
    elif (named := _named(address)) is not None:
        find_head(named)
    else:
        refuse_bad_folder()
        refuse_tight_limits()


def _refuse_another(address: str | None) -> None:
    """ClusterError if `address` is not that of the cluster to which this process is connected."""
    if address in (None, "auto", "local"):
        return
    _refuse_credentials(address)
    here = ray.get_runtime_context().gcs_address
    if _place(address) != _place(here):
        raise ClusterError(
            f"this process is connected to Ray at {here} already, and the run is to go to {address}",
            hint="leave the address out, or call ray.shutdown() first",
        )


def _place(address: str) -> tuple[str, str]:
    host, _, port = address.rpartition(":")
    try:
        return socket.gethostbyname(host.strip("[]")), port
    except (OSError, ValueError):
        return host, port


def starting(address: str | None) -> str:
    """What `connected` is about to do."""
    if ray.is_initialized():
        return "Ray is running already"
    named = _named(address)
    return "starting Ray on this machine" if named is None else f"joining Ray at {named}"


def _named(address: str | None) -> str | None:
    """None for Ray on this machine."""
    named = address or os.environ.get("RAY_ADDRESS") or None
    return None if named == "local" else named


def _connect(address: str | None, allow_open: bool) -> Callable[[], None]:
    """Returns what is to be called when Ray has been left."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        return start_here(quiet)
    address = find_head(address)
    refuse_open_cluster(address, allow_open)
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise ClusterError(
            f"Ray at {address} cannot be joined: {first_line(error)}",
            hint="check --address or RAY_ADDRESS; without both, Ray is started on this machine",
        ) from error
    return lambda: None


def start_here(options: dict[str, Any]) -> Callable[[], None]:
    """Ray on this machine and for this user, with `options` for `ray.init`; ClusterError if it does not
    come up. Its processes end with this one, or when the returned function is called."""
    with ended_with_this_process() as end_leftovers:
        _start_here(options)
    return end_leftovers


def _start_here(options: dict[str, Any]) -> None:
    for attempt in range(START_ATTEMPTS):
        with to_oneself() as folder, few_head_processes():
            try:
                ray.init(address="local", include_dashboard=False, _temp_dir=folder, **options)
                return
            except KeyboardInterrupt:
                ray.shutdown()
                raise
            except Exception as error:
                ray.shutdown()
                if attempt + 1 == START_ATTEMPTS:
                    logs = f"its logs are under {folder}/session_latest/logs"
                    raise ClusterError(
                        f"Ray did not start on this machine: {first_line(error)}",
                        hint=f"{logs}; `balancer doctor` checks the rest",
                    ) from error


def find_head(address: str) -> str:
    """The host:port of the Ray head at `address`, which takes connections. ClusterError if there is none.

    Ray itself tries an absent head for minutes; one TCP connection shows it at once.
    """
    _refuse_credentials(address)
    if address.startswith("ray://"):
        raise ClusterError(
            f"{address}: Ray Client is not supported, it would pull every image through one port",
            hint="run on the cluster: `balancer submit CONFIG --out URI --address http://HEAD:8265`",
        )
    if address == "auto":
        address = started_on_this_machine()
    host_and_port = parse_address(address)
    try:
        socket.create_connection(host_and_port, timeout=ANSWER_TIMEOUT_S).close()
    except OSError as error:
        raise ClusterError(
            f"Ray at {address} does not answer: {error.strerror or error}",
            hint="check --address or RAY_ADDRESS; without both, Ray is started on this machine",
        ) from error
    return address


def parse_address(address: str) -> tuple[str, int]:
    """Host and port. ClusterError for anything but host:port."""
    match = _ADDRESS.fullmatch(address)
    if match is None or len(match["name"] or "") > _LONGEST_HOST or not 1 <= int(match["port"]) <= 65535:
        raise ClusterError(
            f"{shortened(repr(address))} is not the address of a Ray cluster",
            hint="give host:port, with a port from 1 to 65535, or auto, as --address or RAY_ADDRESS",
        )
    return match["name"] or match["ipv6"], int(match["port"])


def _refuse_credentials(address: str) -> None:
    if "@" in address or has_credentials(address):
        raise ClusterError(
            "the address of the Ray cluster holds a user or a password",
            hint="give host:port; Ray takes its token from the environment, RAY_AUTH_TOKEN",
        )


def _resources() -> Resources:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Resources(
        cpus=sum(node.get("CPU", 0.0) for node in nodes),
        gpus=tuple(int(node["GPU"]) for node in nodes if node.get("GPU", 0) >= 1),
        driver_node=ray.get_runtime_context().get_node_id(),
    )


def resources_here() -> Resources:
    """What Ray finds on this machine, without starting it."""
    gpus = accelerators.NvidiaGPUAcceleratorManager
    count = gpus.get_current_node_num_accelerators()
    if (visible := gpus.get_current_process_visible_accelerator_ids()) is not None:
        count = min(count, len(visible))
    return Resources(cpus=ray_utils.get_num_cpus(), gpus=(count,) if count else (), driver_node="")
