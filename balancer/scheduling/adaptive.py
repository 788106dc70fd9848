"""What a run learns of a cell from its candidates: which wordings pass most often, and when to give up."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from balancer.text.quantities import counted

CONFIDENCE = 0.95
"""Of the statement that a cell's acceptance is below a floor, before the cell is given up."""


@dataclass(frozen=True, slots=True)
class Tally:
    """How many candidates were judged, and how many of them accepted."""

    accepted: int
    candidates: int

    def __str__(self) -> str:
        return (
            f"{self.accepted} of {counted(self.candidates, 'candidate')} passed, so that (95 % confidence) "
            f"at most {self.at_most:.1%} of them do"
        )

    @property
    def at_most(self) -> float:
        """Upper bound of the acceptance at 95 % confidence: one-sided, exact (Clopper and Pearson, 1934).

        It is the acceptance at which so few, or fewer, would be accepted with a probability of 5 %.
        """
        if self.accepted >= self.candidates:
            return 1.0
        if self.accepted == 0:
            return float(1 - (1 - CONFIDENCE) ** (1 / self.candidates))
        low, high = self.accepted / self.candidates, 1.0
        for _ in range(60):  # halvings, past the precision of a float
            middle = (low + high) / 2
            if _at_most_so_many(self.accepted, self.candidates, middle) > 1 - CONFIDENCE:
                low = middle
            else:
                high = middle
        return high

    def is_below(self, floor: float) -> bool:
        """Whether `at_most` is below `floor`, without computing it."""
        if floor == 0 or self.accepted >= floor * self.candidates:
            return False
        return _at_most_so_many(self.accepted, self.candidates, floor) < 1 - CONFIDENCE


def _at_most_so_many(successes: int, trials: int, chance: float) -> float:
    """The binomial distribution: the probability of `successes` or fewer in `trials`."""
    if chance >= 1:
        return float(successes >= trials)
    yes, no = math.log(chance), math.log1p(-chance)
    ways = math.lgamma(trials + 1)
    return math.fsum(
        math.exp(ways - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * yes + (trials - k) * no)
        for k in range(successes + 1)
    )


@dataclass(slots=True)
class WordingCounts:
    """Accepted and rejected candidates of each (cell key, wording)."""

    _accepted: Counter[tuple[str, int]] = field(default_factory=Counter)
    _rejected: Counter[tuple[str, int]] = field(default_factory=Counter)

    @classmethod
    def of(cls, judged: Iterable[tuple[str, int, bool]]) -> WordingCounts:
        """From (cell key, wording, whether accepted) of candidates."""
        counts = cls()
        for cell, wording, accepted in judged:
            counts.add(cell, wording, accepted)
        return counts

    def add(self, cell: str, wording: int, accepted: bool) -> None:
        (self._accepted if accepted else self._rejected)[cell, wording] += 1

    def choose(self, cell: str, wordings: Sequence[int], seed: int) -> int:
        """A wording by Thompson sampling: each is worth a draw from what is believed of its acceptance, which
        is Beta(1 + accepted, 1 + rejected), and the greatest draw is taken."""
        chance = random.Random(seed)
        return max(
            wordings,
            key=lambda wording: chance.betavariate(
                1 + self._accepted[cell, wording], 1 + self._rejected[cell, wording]
            ),
        )
