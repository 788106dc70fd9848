"""`balancer doctor`: check that this machine has everything a run needs. Changes nothing."""

from __future__ import annotations

import functools
import os
import shlex
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
    from actors.models.families.lengths import Lengths
    from actors.models.vision.wordings import Wordings
    from actors.weights.file_rules import ModelKind
    from actors.weights.resolve import Availability
    from balancer.config.loras import LoraConfig
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
"""Ray keeps images in shared memory. Containers often have 64 MB of it, less than a few batches."""

MANY_BATCHES = 1_000_000
"""More batches than any machine has generators, because a run starts at most one generator per batch."""

OK, WARNING, MISSING = "ok", "warning", "missing"


@dataclass(frozen=True, slots=True)
class Check:
    what: str
    state: str
    detail: str


@click.command("doctor")
@click.argument("config", required=False, type=click.Path())
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=SETTING_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(config: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check this machine, and whether it can run CONFIG: versions, GPUs, Ray, weights, dataset, plan, disk.

    Reports as missing what `run` would refuse to start without.
    """
    if overrides and config is None:
        raise UsageError("--set needs a config", hint="balancer doctor CONFIG --set ...")
    checks = list(examine(_load(config, overrides)))
    if as_json:
        console.print_json(
            {"findings": [{"what": f.what, "state": f.state, "detail": f.detail} for f in checks]}
        )
    else:
        console.table("doctor", ["what", "state", "detail"], [(f.what, f.state, f.detail) for f in checks])
    if missing := [f.what for f in checks if f.state == MISSING]:
        raise UnavailableError(f"missing: {', '.join(missing)}")


def examine(config: Config | None) -> Iterator[Check]:
    """All checks, in the order in which a run would fail on them."""
    yield Check("python", OK, sys.version.split()[0])
    yield from map(_package, PACKAGES)
    yield _object_stores()
    yield _gpus(config)
    yield _shared_memory()
    if not _cluster():
        yield _attempt("process limits", _process_limits)
        yield _attempt("ray folder", _ray_folder)
    yield _ray_address()
    yield _ray_token()
    if config is None:
        return
    if not _cluster():
        yield _attempt("actors", lambda: _actors(config))
    if config.actors.kind == "models":
        yield from _weights(config)
        yield _attempt("generator settings", lambda: _settings(config))
    if config.verification.calibration is not None:
        yield _attempt("calibration", lambda: _calibration(config))
    yield from _data(config)


def _load(config: str | None, overrides: Sequence[str]) -> Config | None:
    if config is None:
        return None
    from balancer.config.load import load_config

    return load_config(config, overrides)


def _package(name: str) -> Check:
    try:
        return Check(name, OK, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Check(name, MISSING, f"not installed; `pip install {name}`")


def _object_stores() -> Check:
    """Packages that only runs in a bucket need."""
    try:
        versions = [f"{name} {metadata.version(name)}" for name in ("obstore", "boto3")]
        return Check("object stores", OK, ", ".join(versions))
    except metadata.PackageNotFoundError as error:
        detail = f"{error.name} is not installed; runs in a bucket need `pip install 'balancer[s3]'`"
        return Check("object stores", OK, detail)


def _gpus(config: Config | None) -> Check:
    needed = config is not None and config.actors.device == "cuda"
    if shutil.which("nvidia-smi") is None:
        detail = "no NVIDIA driver on this machine (a cluster at --address may have GPUs)"
        return Check("gpus", MISSING if needed and not _cluster() else OK, detail)
    query = ["nvidia-smi", "--query-gpu=name,memory.free,memory.total", "--format=csv,noheader"]
    result = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    if result.returncode != 0:
        return Check("gpus", MISSING, f"nvidia-smi fails: {result.stdout.strip() or result.stderr.strip()}")
    return Check("gpus", OK, "; ".join(result.stdout.strip().splitlines()))


def _shared_memory() -> Check:
    try:
        total = shutil.disk_usage("/dev/shm").total
    except OSError:
        return Check("shared memory", OK, "this system has no /dev/shm; Ray uses files")
    detail = f"{size(total)} at /dev/shm"
    if total < LEAST_SHARED_MEMORY_BYTES:
        return Check("shared memory", WARNING, f"{detail}; start the container with --shm-size=4g")
    return Check("shared memory", OK, detail)


def _process_limits() -> str:
    from actors.cluster.process_limits import refuse_tight_limits

    refuse_tight_limits()
    return "enough for Ray on this machine (ulimit -n, -f, -v)"


def _ray_folder() -> str:
    from actors.cluster.access import refuse_bad_folder

    return refuse_bad_folder()


def _cluster() -> str:
    """The cluster that the environment names; empty for Ray on this machine."""
    address = os.environ.get("RAY_ADDRESS", "")
    return "" if address == "local" else address


def _ray_address() -> Check:
    address = _cluster()
    if not address:
        return Check("ray address", OK, "RAY_ADDRESS names no cluster: runs start Ray on this machine")

    def ask() -> str:
        from actors.cluster.connect import find_head

        head = find_head(address)
        named = "" if head == address else f"{address} is "
        return f"{named}{head}, which takes connections"

    return _attempt("ray address", ask)


def _ray_token() -> Check:
    token = _attempt("ray token", _check_token)
    return token if token.state == MISSING else _token_file()


def _check_token() -> str:
    from actors.cluster.access import refuse_bad_token, token_mode

    refuse_bad_token()
    return token_mode()


def _token_file() -> Check:
    try:
        path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or expanded("~/.ray/auth_token"))
        mode = path.stat().st_mode
    except (OSError, BalancerError):
        return Check("ray token", OK, "none yet; Ray creates one when it first starts on this machine")
    if not stat.S_ISREG(mode):
        return Check("ray token", MISSING, f"{path} is not a regular file; correct RAY_AUTH_TOKEN_PATH")
    if mode & 0o077:
        return Check(
            "ray token", WARNING, f"{path} can be read by others; `chmod 600 {shlex.quote(str(path))}`"
        )
    return Check("ray token", OK, str(path))


def _actors(config: Config) -> str:
    """The number of actors that `run` would start on this machine."""
    from actors.cluster.connect import resources_here
    from actors.cluster.sizing import fit

    return "; ".join(fit(resources_here(), config.actors, MANY_BATCHES).reasons)


def _calibration(config: Config) -> str:
    from balancer.verification.calibration import calibration_file, read_configured

    path = calibration_file(config)
    if config.actors.kind == "simulated":
        read_configured(config)
        return f"{path}, not used by simulated actors"
    from actors.real_images import load_calibration

    load_calibration(config)
    return f"{path}, made for this verifier and these wordings"


def _data(config: Config) -> Iterator[Check]:
    """Check dataset, hold-out and plan as `run` reads them, and the disk space for the plan."""
    from balancer.dataset.audit import audit_dataset, audit_holdout
    from balancer.dataset.location import refuse_shared_holdout
    from balancer.planning.plan import estimate

    audits: list[Audit] = []
    plans: list[Plan] = []

    def dataset() -> str:
        audits.append(audit_dataset(config, console.watch_images))
        return _contents(audits[0], config)

    def holdout() -> str:
        refuse_shared_holdout(config)
        audit = audit_holdout(config, console.watch_images)
        return _contents(audit, config) if audit else "none (dataset.holdout)"

    def plan() -> str:
        plans.append(_plan(audits[0], config))
        return f"{counted(plans[0].total, 'image')} to generate"

    yield _attempt("dataset", dataset)
    yield _attempt("hold-out", holdout)
    if audits:
        yield _attempt("plan", plan)
    if plans:
        if config.actors.kind == "models":
            yield _prompts(plans[0], config)
            yield _wordings(config)
        real_bytes = sum(image.num_bytes for image in audits[0].images)
        yield _disk(estimate(plans[0], config, real_bytes=real_bytes))


def _contents(audit: Audit, config: Config) -> str:
    from balancer.dataset.audit import match_classes
    from balancer.dataset.unreadable import describe_unreadable

    counts = match_classes(audit, config)
    unreadable = f"; {line}" if (line := describe_unreadable(audit, config)) else ""
    images, classes = counted(sum(counts.values()), "image"), counted(len(counts), "class", "classes")
    return f"{images} of {classes} in {audit.path}{unreadable}"


def _plan(audit: Audit, config: Config) -> Plan:
    from balancer.dataset.audit import credited_facets, match_classes
    from balancer.dataset.splits import assign_splits, select_training
    from balancer.evaluation.targets import with_recommended_targets
    from balancer.planning.plan import make_plan

    config = with_recommended_targets(config)
    training = select_training(audit, assign_splits(audit, config))
    return make_plan(config, match_classes(training, config), credited_facets(training, config))


def _disk(expected: Estimate) -> Check:
    """Check the disk where runs are written by default."""
    folder = Path("runs") if Path("runs").is_dir() else Path()
    free = shutil.disk_usage(folder).free
    detail = f"{size(free)} free at {folder.absolute()}, about {size(expected.bytes)} needed"
    if free < expected.bytes:
        return Check("disk", WARNING, f"{detail}; free space, or give `run` an --out on another disk")
    return Check("disk", OK, detail)


def _weights(config: Config) -> Iterator[Check]:
    from actors.weights import loras
    from actors.weights import resolve as weights

    def look(kind: ModelKind, model: str, revision: str | None, variant: str | None) -> str:
        return _place(weights.check(model, revision, variant, kind))

    def look_at_lora(wanted: LoraConfig) -> str:
        return _place(loras.check(wanted))

    for kind, wanted in weights.wanted_models(config).items():
        yield _attempt(f"{kind} weights", functools.partial(look, kind, *wanted))
    for name, lora in loras.named(config).items():
        yield _attempt(f"{name} weights", functools.partial(look_at_lora, lora))
    if config.generation.conditioning == "image":
        yield _attempt("conditioning", lambda: _conditioning(config))


def _place(files: Availability) -> str:
    if files.folder is None:
        return f"{size(files.missing_bytes)} to download from the hub at the first start"
    return f"{files.place}: {files.folder}"


def _conditioning(config: Config) -> str:
    from actors.models.conditioning.support import refuse_without_image_to_image

    refuse_without_image_to_image(config)
    return "the generator can start from images"


def _prompts(plan: Plan, config: Config) -> Check:
    """Whether the generator sees all words of every prompt."""
    from actors.models.families.lengths import check_lengths

    return _texts(
        "prompts",
        lambda: check_lengths(config, [wanted.cell for wanted in plan.cells]),
        "the generator is not on this machine, or of an unknown class",
    )


def _wordings(config: Config) -> Check:
    """Whether the verifier sees all words of every wording."""
    from actors.models.vision.wordings import check_wordings

    return _texts("wordings", lambda: check_wordings(config), "the verifier is not on this machine")


def _texts(noun: str, check: Callable[[], Lengths | Wordings | None], why_not: str) -> Check:
    try:
        texts = check()
    except BalancerError as error:
        return Check(noun, MISSING, error.message)
    if texts is None:
        return Check(noun, OK, f"not measured: {why_not}")
    return Check(noun, WARNING if texts.cut else OK, str(texts))


def _settings(config: Config) -> str:
    from actors.models.families.checks import check_generator

    return str(check_generator(config, ask_hub=True))


def _attempt(what: str, look: Callable[[], str]) -> Check:
    try:
        return Check(what, OK, look())
    except BalancerError as error:
        return Check(what, MISSING, f"{error.message}; {error.hint}" if error.hint else error.message)
