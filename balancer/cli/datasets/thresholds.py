"""`balancer calibrate RUN`: thresholds from what people decided."""

from __future__ import annotations

from dataclasses import asdict

from balancer.cli import console
from balancer.review.thresholds import Threshold, find_threshold, read_judged
from balancer.storage import open_storage
from balancer.text.commands import suggested
from balancer.text.quantities import counted, percent

ALL = "all classes"


def show_thresholds(run: str, wanted: float, as_json: bool) -> None:
    """For all classes and for each, the threshold that shows the precision that is wanted."""
    judged = read_judged(open_storage(run, create=False))
    every = [one for of_class in judged.values() for one in of_class]
    found = {ALL: find_threshold(every, wanted)}
    found |= {name: find_threshold(of_class, wanted) for name, of_class in sorted(judged.items())}
    if as_json:
        console.print_json({name: asdict(one) for name, one in found.items()})
        return
    columns = ("", "decided", "right now", "threshold", "right above it", "95 % confidence", "kept")
    title = f"thresholds at which {wanted:.1%} of the accepted images are right, by what people decided"
    console.table(title, columns, [_row(name, one) for name, one in found.items()])
    console.say()
    whole = found[ALL]
    if whole.threshold is None:
        console.note(
            f"nothing shows it yet: it takes {counted(whole.needed, 'decided image')} without an error above"
            f" a threshold, and {whole.judged} of the estimate sample are decided"
        )
    else:
        setting = f"verification.threshold={whole.threshold!r}"
        console.note(f"{suggested('rejudge', run, '--set', setting)} shows what would change in the run")


def _row(name: str, found: Threshold) -> list[console.Cell]:
    if found.threshold is None:
        now = None if found.now is None else percent(found.now, 1, 1)
        return [name, found.judged, now, None, None, None, None]
    return [
        name,
        found.judged,
        percent(found.now or 0.0, 1, 1),
        round(found.threshold, 4),
        percent(found.right, found.above, 1),
        f"{percent(found.low, 1, 1)} to {percent(found.high, 1, 1)}",
        percent(found.kept, 1),
    ]
