"""`balancer calibrate RUN`: thresholds from what people decided."""

from __future__ import annotations

from dataclasses import asdict

from balancer.cli import console
from balancer.review.thresholds import Threshold, figures_at, find_threshold, read_judged
from balancer.storage import open_storage
from balancer.text.commands import suggested
from balancer.text.quantities import counted, percent

ALL = "all classes"


def show_thresholds(run: str, wanted: float, as_json: bool) -> None:
    """The threshold that shows the precision that is wanted, and what it would change in each class; where
    none shows it for all classes, the threshold of each class that one does for."""
    judged = read_judged(open_storage(run, create=False))
    whole = find_threshold([one for of_class in judged.values() for one in of_class], wanted)
    own = {name: find_threshold(of_class, wanted) for name, of_class in sorted(judged.items())}
    shown = own
    if whole.threshold is not None:
        shown = {name: figures_at(judged[name], whole.threshold) for name in own}
    if as_json:
        console.print_json(
            {
                "precision": wanted,
                "all": asdict(whole),
                "by_class": {
                    name: {"at_threshold_of_all": asdict(shown[name]) if shown is not own else None}
                    | {"own": asdict(own[name])}
                    for name in own
                },
            }
        )
        return
    columns = ("", "decided", "right now", "threshold", "right above it", "95 % confidence", "kept")
    title = f"thresholds at which {wanted:.1%} of the accepted images are right, by what people decided"
    console.table(title, columns, [_row(name, one) for name, one in ({ALL: whole} | shown).items()])
    console.say()
    if whole.threshold is None:
        console.note(
            f"nothing shows it yet: it takes {counted(whole.needed, 'decided image')} without an error above"
            f" a threshold, and {whole.judged} of the estimate sample are decided"
        )
    else:
        setting = f"verification.threshold={whole.threshold!r}"
        console.note(f"{suggested('rejudge', run, '--set', setting)} shows what would change in the run")


def _row(name: str, threshold: Threshold) -> list[console.Cell]:
    if threshold.threshold is None:
        now = None if threshold.now is None else percent(threshold.now, 1, 1)
        return [name, threshold.judged, now, None, None, None, None]
    return [
        name,
        threshold.judged,
        percent(threshold.now or 0.0, 1, 1),
        round(threshold.threshold, 4),
        percent(threshold.right, threshold.above, 1, nothing="-"),
        f"{percent(threshold.low, 1, 1)} to {percent(threshold.high, 1, 1)}",
        percent(threshold.kept, 1),
    ]
