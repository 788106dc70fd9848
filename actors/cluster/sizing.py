"""How many actors a cluster has place for, and what each reserves."""

from __future__ import annotations

from dataclasses import dataclass

from balancer.config.schema import ActorsConfig
from balancer.errors import ClusterError
from balancer.text.quantities import counted

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
    capacity = counted(sum(resources.gpus), "GPU")
    if places != sum(resources.gpus):
        capacity += f" that hold {places} of {per_generator:g} GPU each"
    if not places:
        raise ClusterError(
            f"no generator with {per_generator:g} GPUs fits: the largest node has {max(resources.gpus)}",
            hint="lower actors.gpus_per_generator",
        )
    generators, why = _count(wanted.generators, places, batches, capacity, sum(resources.gpus))
    if generators > places:
        raise ClusterError(
            f"cannot place {counted(generators, 'generator')} with {per_generator:g} GPU each: "
            f"{counted(sum(resources.gpus), 'GPU')} can take {places}",
            hint="lower actors.generators or actors.gpus_per_generator",
        )
    verifiers = _per_generators(wanted.verifiers, generators)
    places_beside = _verifier_places(resources.gpus, generators, per_generator, per_verifier)
    if verifiers > places_beside:
        raise ClusterError(
            f"cannot place {counted(verifiers, 'verifier')} with {per_verifier:g} GPU each beside "
            f"{counted(generators, 'generator')} with {per_generator:g}: {places_beside} would fit",
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
            *_idle_gpus(per_generator),
        ),
    )


def _idle_gpus(per_generator: float) -> tuple[str, ...]:
    if per_generator <= 1:
        return ()
    return (
        f"each generator uses 1 of its {per_generator:g} GPUs; set actors.gpus_per_generator to 1 or less",
    )


def _fit_cpus(resources: Resources, wanted: ActorsConfig, batches: int) -> Fleet:
    """Verifiers and writers reserve no core: they work a twentieth of the time, in the gaps."""
    places = max(1, int(resources.cpus))
    generators, why = _count(wanted.generators, places, batches, counted(places, "CPU core"), places)
    simulated = wanted.kind == "simulated"
    if generators > places and not simulated:
        raise ClusterError(
            f"cannot place {counted(generators, 'generator')}: the machine has {counted(places, 'CPU core')}",
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


def _count(wanted: int | str, places: int, batches: int, capacity: str, devices: int) -> tuple[int, str]:
    if isinstance(wanted, int):
        return wanted, "actors.generators asks for it"
    if batches < places:
        made = counted(batches, "batch", "batches") if batches else "no batch"
        return max(1, batches), f"{capacity}, but only {made} to make"
    return places, f"one for each of {capacity}" if places == devices else capacity


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
