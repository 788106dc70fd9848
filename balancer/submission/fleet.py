"""How many nodes a config asks for, and what each has."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from balancer.config.schema import SIMULATED, Config
from balancer.errors import UsageError

_MEMORY = re.compile(r"[1-9][0-9]{0,5}(Mi|Gi|Ti)")


@dataclass(frozen=True, slots=True)
class Nodes:
    """`count` nodes from the start, up to `most` as the autoscaler sees demand."""

    count: int
    most: int
    gpus: int
    cpus: int
    memory: str


def nodes_for(config: Config, *, count: int | None, most: int | None, cpus: int, memory: str) -> Nodes:
    """Nodes of one generator each, or of as many as share one GPU. Without `count` as many as
    `actors.generators` asks for, one if that is `auto`."""
    if not _MEMORY.fullmatch(memory):
        raise UsageError(f"--memory {memory}: not a size such as 32Gi")
    gpus = gpus_per_node(config)
    if count is None:
        wanted = config.actors.generators
        count = math.ceil(wanted / _generators_per_node(config, gpus)) if isinstance(wanted, int) else 1
    if most is not None and most < count:
        raise UsageError(f"--max-workers {most} is below the {count} workers that there are from the start")
    return Nodes(count, most or count, gpus, cpus, memory)


def gpus_per_node(config: Config) -> int:
    """0 where models run on CPUs."""
    actors = config.actors
    if actors.device == "cpu" or actors.kind == SIMULATED:
        return 0
    return max(1, math.ceil(actors.gpus_per_generator))


def _generators_per_node(config: Config, gpus: int) -> int:
    share = config.actors.gpus_per_generator
    return max(1, math.floor(gpus / share)) if gpus and share <= 1 else 1
