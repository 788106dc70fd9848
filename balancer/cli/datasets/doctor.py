"""`balancer doctor`: is everything here that a run needs? Looks, and changes nothing."""

from __future__ import annotations

import functools
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import click

from balancer.cli import console
from balancer.config.dotted import SETTING_HELP
from balancer.errors import BalancerError, UnavailableError, UsageError
from balancer.storage.user_paths import expanded
from balancer.text.quantities import counted, size

if TYPE_CHECKING:
    from actors.weights.file_rules import Kind
    from balancer.config.schema import Config
    from balancer.dataset.audit import Audit
    from balancer.planning.plan import Estimate, Plan

PACKAGES = (
    "balancer",
    "ray",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "open_clip_torch",
    "pyarrow",
)
LEAST_SHARED_MEMORY_BYTES = 512_000_000
"""Ray keeps images in shared memory; containers often have 64 MB of it, less than a few batches."""

MANY_BATCHES = 1_000_000
"""More than any machine has generators for. A run starts no more generators than it has batches to make."""

OK, WARNING, MISSING = "ok", "warning", "missing"


@dataclass(frozen=True, slots=True)
class Finding:
    what: str
    state: str
    detail: str


@click.command("doctor")
@click.argument("config", required=False, type=click.Path())
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=SETTING_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(config: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check this machine, and what CONFIG needs of it: versions, GPUs, Ray, weights, dataset, plan, disk.

    What `run` refuses to start with is missing here.
    """
    if overrides and config is None:
        raise UsageError("--set changes a config, and none is given", hint="balancer doctor CONFIG --set ...")
    findings = list(examine(_load(config, overrides)))
    if as_json:
        console.print_json(
            {"findings": [{"what": f.what, "state": f.state, "detail": f.detail} for f in findings]}
        )
    else:
        console.table("doctor", ["what", "state", "detail"], [(f.what, f.state, f.detail) for f in findings])
    if missing := [f.what for f in findings if f.state == MISSING]:
        raise UnavailableError(f"missing: {', '.join(missing)}")


def examine(config: Config | None) -> Iterator[Finding]:
    """Every finding, in the order a run would trip over them."""
    yield Finding("python", OK, sys.version.split()[0])
    yield from map(_package, PACKAGES)
    yield _object_stores()
    yield _gpus(config)
    yield _shared_memory()
    if not os.environ.get("RAY_ADDRESS"):
        yield _attempt("process limits", _process_limits)
    yield _ray_address()
    yield _ray_token()
    if config is None:
        return
    if not os.environ.get("RAY_ADDRESS"):
        yield _attempt("actors", lambda: _actors(config))
    if config.actors.kind == "models":
        yield from _weights(config)
        if config.verification.calibration is not None:
            yield _attempt("calibration", lambda: _calibration(config))
    yield from _data(config)


def _load(config: str | None, overrides: Sequence[str]) -> Config | None:
    if config is None:
        return None
    from balancer.config.load import load_config

    return load_config(config, overrides)


def _package(name: str) -> Finding:
    try:
        return Finding(name, OK, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, MISSING, f"not installed; `pip install {name}`")


def _object_stores() -> Finding:
    """What only runs in a bucket need."""
    try:
        versions = [f"{name} {metadata.version(name)}" for name in ("obstore", "boto3")]
        return Finding("object stores", OK, ", ".join(versions))
    except metadata.PackageNotFoundError as error:
        detail = f"{error.name} is not installed; runs in a bucket need `pip install 'balancer[s3]'`"
        return Finding("object stores", OK, detail)


def _gpus(config: Config | None) -> Finding:
    needed = config is not None and config.actors.device == "cuda"
    if shutil.which("nvidia-smi") is None:
        detail = "no NVIDIA driver on this machine (a cluster at --address may have GPUs)"
        return Finding("gpus", MISSING if needed and not os.environ.get("RAY_ADDRESS") else OK, detail)
    query = ["nvidia-smi", "--query-gpu=name,memory.free,memory.total", "--format=csv,noheader"]
    result = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    if result.returncode != 0:
        return Finding("gpus", MISSING, f"nvidia-smi fails: {result.stdout.strip() or result.stderr.strip()}")
    return Finding("gpus", OK, "; ".join(result.stdout.strip().splitlines()))


def _shared_memory() -> Finding:
    try:
        total = shutil.disk_usage("/dev/shm").total
    except OSError:
        return Finding("shared memory", OK, "this system has no /dev/shm; Ray uses files")
    detail = f"{size(total)} at /dev/shm"
    if total < LEAST_SHARED_MEMORY_BYTES:
        return Finding("shared memory", WARNING, f"{detail}; give a container more with --shm-size=4g")
    return Finding("shared memory", OK, detail)


def _process_limits() -> str:
    from actors.cluster.process_limits import refuse_tight_limits

    refuse_tight_limits()
    return "enough for Ray on this machine (ulimit -n, -f, -v)"


def _ray_address() -> Finding:
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return Finding("ray address", OK, "RAY_ADDRESS is not set: runs start Ray on this machine")

    def ask() -> str:
        from actors.cluster.connect import refuse_silent_head

        refuse_silent_head(address)
        return f"{address} answers"

    return _attempt("ray address", ask)


def _ray_token() -> Finding:
    found = _attempt("ray token", _token_that_run_takes)
    return found if found.state == MISSING else _token_file()


def _token_that_run_takes() -> str:
    from actors.cluster.access import refuse_bad_token, token_mode

    refuse_bad_token()
    return token_mode()


def _token_file() -> Finding:
    try:
        path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or expanded("~/.ray/auth_token"))
        mode = path.stat().st_mode
    except (OSError, BalancerError):
        return Finding("ray token", OK, "none yet; Ray makes one when it first starts on this machine")
    if not stat.S_ISREG(mode):
        return Finding("ray token", MISSING, f"{path} is not a regular file; correct RAY_AUTH_TOKEN_PATH")
    if mode & 0o077:
        return Finding("ray token", WARNING, f"{path} can be read by others; `chmod 600 {path}`")
    return Finding("ray token", OK, str(path))


def _actors(config: Config) -> str:
    """How many actors a run starts on this machine, as `run` works it out."""
    from actors.cluster.connect import fit, resources_here

    return "; ".join(fit(resources_here(), config.actors, MANY_BATCHES).reasons)


def _calibration(config: Config) -> str:
    from actors.real_images import calibration_of
    from balancer.verification.calibration import calibration_file

    calibration_of(config)
    return f"{calibration_file(config)}, made for this verifier and these wordings"


def _data(config: Config) -> Iterator[Finding]:
    """Dataset, hold-out and plan as `run` reads them, and the disk that the plan takes."""
    from balancer.dataset.audit import audit_dataset, audit_holdout
    from balancer.planning.plan import estimate

    audits: list[Audit] = []
    plans: list[Plan] = []

    def dataset() -> str:
        audits.append(audit_dataset(config))
        return _contents(audits[0], config)

    def holdout() -> str:
        found = audit_holdout(config)
        return _contents(found, config) if found else "none (dataset.holdout)"

    def plan() -> str:
        plans.append(_plan(audits[0], config))
        return f"{counted(plans[0].total, 'image')} to generate"

    yield _attempt("dataset", dataset)
    yield _attempt("hold-out", holdout)
    if audits:
        yield _attempt("plan", plan)
    if plans:
        real_bytes = sum(image.num_bytes for image in audits[0].images)
        yield _disk(estimate(plans[0], config, real_bytes=real_bytes))


def _contents(found: Audit, config: Config) -> str:
    from balancer.dataset.audit import match_classes

    counts = match_classes(found, config)
    unreadable = f", {len(found.unreadable)} unreadable" if found.unreadable else ""
    images, classes = counted(sum(counts.values()), "image"), counted(len(counts), "class", "classes")
    return f"{images} of {classes} in {found.path}{unreadable}"


def _plan(found: Audit, config: Config) -> Plan:
    from balancer.dataset.audit import credited_facets, match_classes
    from balancer.dataset.splits import assign_splits, select_training
    from balancer.planning.plan import make_plan

    training = select_training(found, assign_splits(found, config))
    return make_plan(config, match_classes(training, config), credited_facets(training, config))


def _disk(expected: Estimate) -> Finding:
    """Where runs are written unless --out says otherwise."""
    folder = Path("runs") if Path("runs").is_dir() else Path()
    free = shutil.disk_usage(folder).free
    detail = f"{size(free)} free at {folder.absolute()}, about {size(expected.bytes)} needed"
    if free < expected.bytes:
        return Finding("disk", WARNING, f"{detail}; make room, or give `run` an --out on another disk")
    return Finding("disk", OK, detail)


def _weights(config: Config) -> Iterator[Finding]:
    from actors.weights import resolve as weights

    def look(kind: Kind, model: str, revision: str | None, variant: str | None) -> str:
        found = weights.check(model, revision, variant, kind)
        if found.folder is None:
            return f"{size(found.missing_bytes)} to download from the hub at the first start"
        return f"{found.place}: {found.folder}"

    for kind, wanted in weights.wanted_models(config).items():
        yield _attempt(f"{kind} weights", functools.partial(look, kind, *wanted))


def _attempt(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, OK, look())
    except BalancerError as error:
        return Finding(what, MISSING, f"{error.message}; {error.hint}" if error.hint else error.message)
