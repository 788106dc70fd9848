"""Messages of the loop to the user, each sent once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from actors.cluster.pool import ActorPool
from actors.loop.batch import described
from balancer.cells import Cell
from balancer.errors import InterruptedRun
from balancer.scheduling.schedule import Schedule
from balancer.text.quantities import are, counted

NO_DEVICE = "none"
"""The device that simulated actors give."""


@dataclass(slots=True)
class Notices:
    """`announce` is for steps, which take the time since the start with them; `note` for all else."""

    note: Callable[[str], None]
    announce: Callable[[str], None]
    _introduced: set[str] = field(default_factory=set)
    _given_up: set[Cell] = field(default_factory=set)

    def introduce_models(self, pools: Iterable[ActorPool]) -> None:
        """Model, device and precision, as the first actor of each kind chose them."""
        for pool in pools:
            ready = next((actor for actor in pool.actors if actor.ready), None)
            if ready is None or pool.kind in self._introduced:
                continue
            self._introduced.add(pool.kind)
            model, *where = (
                described(ready.description, name) for name in ("model", "device", "dtype", "placement")
            )
            place = "" if where[0] == NO_DEVICE else f" on {', '.join(filter(None, where))}"
            self.announce(f"{pool.kind} ready: {model}{place}")

    def given_up_cells(self, schedule: Schedule) -> None:
        for cell, tally in schedule.given_up.items():
            if cell not in self._given_up:
                self._given_up.add(cell)
                self.note(f"{cell.key} is given up: {tally}")

    def draining(self, under_way: int) -> None:
        self.note(f"stopping after {counted(under_way, 'candidate')} under way; once more to stop at once")

    def revoked(self, count: int) -> None:
        self.note(f"{counted(count, 'accepted image')} {are(count)} made again, as copies of others")


def interruption(signal_number: int, schedule: Schedule) -> InterruptedRun:
    return InterruptedRun(
        f"interrupted: {len(schedule.accepted)} of {counted(schedule.wanted, 'image')} committed",
        signal_number=signal_number,
        hint="the same command goes on from here",
    )
