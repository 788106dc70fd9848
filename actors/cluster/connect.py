"""Connect to Ray or start it, and work out how many actors fit, with the reason for each number."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import accelerators
from ray._private import utils as ray_utils
from ray._private import worker as ray_worker

from actors.cluster.access import refuse_open_cluster, started_on_this_machine, to_oneself
from actors.cluster.leftovers import ended_with_this_process
from actors.cluster.process_limits import refuse_tight_limits
from balancer.config.schema import ActorsConfig
from balancer.errors import ClusterError, UsageError, first_line
from balancer.process.signals import StopSignal
from balancer.text.quantities import counted
from balancer.text.safetext import has_credentials

ANSWER_TIMEOUT_S = 5.0
"""A Ray head that is there answers a TCP connection within milliseconds, across continents in one second."""

START_ATTEMPTS = 3
"""Ray's own processes must report within 30 s of starting, which a loaded machine can miss once."""

GENERATORS_PER_VERIFIER = 8
"""One verifier batch takes under a twentieth of the time of the generator batch it judges."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What the cluster has. `gpus` counts the GPUs of each node that has any."""

    cpus: float
    gpus: tuple[int, ...]
    driver_node: str


@dataclass(frozen=True, slots=True)
class Fleet:
    """How many actors to start, and what each reserves. `reasons` explain what was decided."""

    generators: int
    verifiers: int
    writers: int
    gpus_per_generator: float
    gpus_per_verifier: float
    cpus_per_generator: float
    reasons: tuple[str, ...]


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


def refuse_silent(address: str | None) -> None:
    """ClusterError if a cluster is named, by `address` or `RAY_ADDRESS`, and does not answer;
    UnavailableError if Ray would hang on this machine. Told before anything is written for a run on it."""
    if ray.is_initialized():
        _refuse_another(address)
    elif (named := _named(address)) is not None:
        refuse_silent_head(named)
    else:
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
    except (OSError, UnicodeError):
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
    if address == "auto":
        address = started_on_this_machine()
    refuse_silent_head(address)
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
        with to_oneself() as folder:
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


def refuse_silent_head(address: str) -> None:
    """ClusterError unless there may be a Ray head at `address`.

    Ray itself tries an absent head for minutes; one TCP connection tells at once.
    """
    _refuse_credentials(address)
    if "://" in address:
        raise ClusterError(
            f"{address}: Ray Client is not supported, it would pull every image through one port",
            hint="run on the cluster: `ray job submit --working-dir . -- python -m balancer run CONFIG`",
        )
    host, _, port = address.rpartition(":")
    if address == "auto" or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_TIMEOUT_S).close()
    except OSError as error:
        raise ClusterError(
            f"Ray at {address} does not answer: {error.strerror or error}",
            hint="check --address or RAY_ADDRESS; without both, Ray is started on this machine",
        ) from error


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
    found = gpus.get_current_node_num_accelerators()
    if (visible := gpus.get_current_process_visible_accelerator_ids()) is not None:
        found = min(found, len(visible))
    return Resources(cpus=ray_utils.get_num_cpus(), gpus=(found,) if found else (), driver_node="")


def fit(resources: Resources, wanted: ActorsConfig, batches: int) -> Fleet:
    """As many actors as fit, or as the config asks; ClusterError if those do not fit.

    `batches` is how many batches the open slots make at least: more generators would stand idle.
    """
    if wanted.device == "cuda" and not resources.gpus:
        raise ClusterError(
            "this config needs a GPU (actors.device: cuda) and Ray sees none",
            hint="run where a GPU is, pass --address of a cluster that has one, or set actors.device: auto",
        )
    if _uses_gpus(wanted, resources):
        return _fit_gpus(resources, wanted, batches)
    return _fit_cpus(resources, wanted, batches)


def _uses_gpus(wanted: ActorsConfig, resources: Resources) -> bool:
    return wanted.kind == "models" and wanted.device != "cpu" and bool(resources.gpus)


def _fit_gpus(resources: Resources, wanted: ActorsConfig, batches: int) -> Fleet:
    per_generator, per_verifier = wanted.gpus_per_generator, wanted.gpus_per_verifier
    places = sum(_places(gpus, per_generator) for gpus in resources.gpus)
    room_in_words = counted(sum(resources.gpus), "GPU")
    if places != sum(resources.gpus):
        room_in_words += f" with room for {places} of {per_generator:g} GPU each"
    if not places:
        raise ClusterError(
            f"no generator with {per_generator:g} GPUs fits: the largest node has {max(resources.gpus)}",
            hint="lower actors.gpus_per_generator",
        )
    generators, why = _count(wanted.generators, places, batches, room_in_words, sum(resources.gpus))
    if generators > places:
        raise ClusterError(
            f"no room for {counted(generators, 'generator')} with {per_generator:g} GPU each: "
            f"{counted(sum(resources.gpus), 'GPU')} can take {places}",
            hint="lower actors.generators or actors.gpus_per_generator",
        )
    verifiers = _per_generators(wanted.verifiers, generators)
    room = _verifier_places(resources.gpus, generators, per_generator, per_verifier)
    if verifiers > room:
        raise ClusterError(
            f"no room for {counted(verifiers, 'verifier')} with {per_verifier:g} GPU each beside "
            f"{counted(generators, 'generator')} with {per_generator:g}: {room} would fit",
            hint="lower actors.gpus_per_generator, or put verifiers on CPU with actors.gpus_per_verifier: 0",
        )
    return Fleet(
        generators=generators,
        verifiers=verifiers,
        writers=_per_generators(wanted.writers, generators),
        gpus_per_generator=per_generator,
        gpus_per_verifier=per_verifier,
        cpus_per_generator=0,
        reasons=(
            f"{counted(generators, 'generator')}: {why}",
            f"{counted(verifiers, 'verifier')} beside them: "
            f"{_why_per_generators(wanted.verifiers, 'actors.verifiers')}",
        ),
    )


def _fit_cpus(resources: Resources, wanted: ActorsConfig, batches: int) -> Fleet:
    """Verifiers and writers reserve no core: they work a twentieth of the time, in the gaps."""
    places = max(1, int(resources.cpus))
    generators, why = _count(wanted.generators, places, batches, counted(places, "CPU core"), places)
    simulated = wanted.kind == "simulated"
    if generators > places and not simulated:
        raise ClusterError(
            f"no room for {counted(generators, 'generator')}: the machine has {counted(places, 'CPU core')}",
            hint="lower actors.generators, or leave it at auto",
        )
    return Fleet(
        generators=generators,
        verifiers=_per_generators(wanted.verifiers, generators),
        writers=_per_generators(wanted.writers, generators),
        gpus_per_generator=0,
        gpus_per_verifier=0,
        cpus_per_generator=0 if simulated else 1,
        reasons=(f"{counted(generators, 'generator')} on CPU: {why}",),
    )


def _count(wanted: int | str, places: int, batches: int, room: str, devices: int) -> tuple[int, str]:
    if isinstance(wanted, int):
        return wanted, "actors.generators asks for it"
    if batches < places:
        return max(1, batches), f"{room}, but only {max(1, batches)} batches to make"
    return places, f"one for each of {room}" if places == devices else room


def _why_per_generators(wanted: int | str, setting: str) -> str:
    if isinstance(wanted, int):
        return f"{setting} asks for it"
    return f"1 per {GENERATORS_PER_VERIFIER} generators"


def _per_generators(wanted: int | str, generators: int) -> int:
    return wanted if isinstance(wanted, int) else -(-generators // GENERATORS_PER_VERIFIER)


def _places(gpus: int, share: float) -> int:
    """Actors of `share` GPUs that fit on a node: a share below 1 must fit into a single GPU."""
    return gpus * int(1 / share + 1e-9) if share <= 1 else int(gpus / share + 1e-9)


def _verifier_places(gpus: tuple[int, ...], generators: int, per_generator: float, share: float) -> int:
    if share == 0:
        return generators
    if per_generator > 1:
        return _places(sum(gpus) - int(generators * per_generator), share)
    fullest = int(1 / per_generator + 1e-9)
    busy, odd = divmod(generators, fullest)
    loads = [fullest] * busy + ([odd] if odd else [])
    loads += [0] * (sum(gpus) - len(loads))
    return sum(int((1 - load * per_generator) / share + 1e-9) for load in loads)
