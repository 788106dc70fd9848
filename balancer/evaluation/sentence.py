"""The outcome in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from balancer.evaluation.arms import DESCRIBED
from balancer.evaluation.decision import ClassVerdict, Overall
from balancer.evaluation.statistics import Interval, Needed
from balancer.text.quantities import are, counted, listed

LISTED = 6

METRICS = {"balanced_accuracy": "balanced accuracy", "accuracy": "accuracy"}


def points(value: float) -> str:
    """A difference of two shares in points: `+3.2`."""
    return f"{100 * value:+.1f}"


def bounds(difference: Interval) -> str:
    return f"95 % interval {points(difference.low)} to {points(difference.high)}"


def decision_sentence(
    overall: Overall, metric: str, margin: float, baseline: str, seeds: int, test_images: int
) -> str:
    """The decision and the figures that it rests on."""
    found = overall.difference
    change = f"{METRICS[metric]} {points(found.mean)} points ({bounds(found)})"
    against = f"against {DESCRIBED[baseline]}"
    basis = f"{counted(seeds, 'seed')}, {counted(test_images, 'test image')}"
    if overall.decision == "add":
        return f"Add the generated images: {change} {against}; {basis}."
    if overall.decision == "cannot_tell":
        return f"Cannot tell whether to add the generated images: {change} {against}; {basis}." + _enough(
            overall.needed
        )
    if found.high < 0:
        return f"Do not add the generated images, they do harm: {change} {against}; {basis}."
    return (
        f"Do not add the generated images, a gain of {100 * margin:g} points is ruled out: {change}"
        f" {against}; {basis}."
    )


def _enough(needed: Needed | None) -> str:
    if needed is None:
        return ""
    if needed.together is not None:
        images, seeds = needed.together
        return f" If the difference stays so, about {images} test images with {seeds} seeds would tell."
    ways = [f"about {needed.test_images} test images with these seeds"] if needed.test_images else []
    ways += [f"about {needed.seeds} seeds with these test images"] if needed.seeds else []
    return f" If the difference stays so, {' or '.join(ways)} would tell."


def class_needs(images: int | None, seeds: int | None, together: Sequence[int] | None) -> str:
    """What would tell of a class, in few words."""
    if together is not None:
        return f"about {together[0]} images and {together[1]} seeds"
    ways = [f"about {images} images"] if images else []
    ways += [f"about {seeds} seeds"] if seeds else []
    return " or ".join(ways)


def unseen_sentence(names: Sequence[str], over_others: Interval | None) -> str:
    """Of classes without real training images: what the difference is made of; empty if there are none."""
    if not names:
        return ""
    text = (
        f"{counted(len(names), 'class', 'classes')} without real training images"
        f" ({listed(names, LISTED)}): no baseline can predict them, so what is gained there is only that the"
        " classifier knows them at all"
    )
    if over_others is not None:
        text += (
            "; over the other classes, which now have to be told from more, the difference is"
            f" {points(over_others.mean)} points ({bounds(over_others)})"
        )
    return f"{text}."


def untested_sentence(verdicts: Mapping[str, ClassVerdict], least: int) -> str:
    """Of classes that are left out of the metric; empty if there are none."""
    names = [name for name, verdict in verdicts.items() if verdict.difference is None]
    if not names:
        return ""
    found = listed([f"{name} ({verdicts[name].test_images})" for name in names], LISTED)
    return (
        f"Nothing can be said of {counted(len(names), 'class', 'classes')}, which {are(len(names))} left out"
        f" of the metric for having fewer than {least} test images, or too few for validation: {found}."
    )


def worth_sentence(worth: tuple[int, bool] | None, real: int, generated: int) -> str:
    """What the generated images are worth in real ones."""
    if worth is None:
        return (
            "More real images do not make the classifier better here, so none say what the others are worth."
        )
    images, at_least = worth
    gained = images - real
    if gained <= 0:
        return f"{counted(generated, 'generated image')} beside {real} real ones are worth no real image."
    return (
        f"{counted(generated, 'generated image')} beside {real} real ones train as well as"
        f" {'at least ' if at_least else 'about '}{images} real ones would, so they are worth"
        f" {'at least ' if at_least else 'about '}{gained}."
    )


def repeated_sentence(decisions: Sequence[str]) -> str:
    """Of this experiment and the others on the same images of the run; empty if there are no others."""
    if len(decisions) < 2:
        return ""
    added = decisions.count("add")
    return (
        f"{len(decisions)} experiments with different settings have ended on these images, of which {added}"
        f" {'says' if added == 1 else 'say'} add. One of many may say so by chance: trust the first one."
    )


def moved_sentence(real_share: float, left_out: Sequence[str], decision: str) -> str:
    """What `recommended` does."""
    without = f" without the generated images of {listed(left_out, LISTED)}" if left_out else ""
    doubt = ", although it is not proven that they help" if decision == "cannot_tell" else ""
    return f"Recommended: real_share={real_share:g}{without}{doubt}."
