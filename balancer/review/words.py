"""A review in words, for `status`, the report and dataset cards."""

from __future__ import annotations

from collections.abc import Iterator

from balancer.review.agreement import Agreement
from balancer.review.estimates import Estimate, bound_without_errors
from balancer.review.summary import Summary
from balancer.text.quantities import are, counted, listed, percent

LISTED = 5


def describe_error(error: Summary | Estimate) -> str:
    """`3 of 24 wrong: 12.5 % (2.7 % to 32.4 %)`, the interval with 95 % confidence."""
    rate = error.error_rate if isinstance(error, Summary) else error.rate
    if rate is None:
        return "nobody has looked yet"
    low, high = share(error.low), share(error.high)
    return f"{error.errors} of {error.decided} wrong: {share(rate)} ({low} to {high})"


def share(part: float) -> str:
    return percent(part, 1, 1, unit=" %")


def describe_review(summary: Summary) -> list[str]:
    """What people found out, and what is left to do; nothing of a run without a sample and decisions."""
    if not summary.decisions:
        if not summary.sampled:
            return []
        bound = percent(bound_without_errors(summary.sampled), 1, unit=" %")
        return [
            f"{counted(summary.sampled, 'image')} {are(summary.sampled)} marked for review; without an error,"
            f" they would show that at most {bound} of all labels are wrong (95 % confidence)"
        ]
    return list(_lines(summary))


def _lines(summary: Summary) -> Iterator[str]:
    who = listed(list(summary.reviewers), LISTED)
    left = max(0, summary.sampled - summary.decided - len(summary.tied))
    rest = f"; {left} of {summary.sampled} sampled images left" if left else ""
    yield f"label error of accepted images, by {who}: {describe_error(summary)}, 95 % confidence{rest}"
    if summary.rejected:
        yield f"{counted(summary.rejected, 'image')} {are(summary.rejected)} out because people rejected them"
    if decided := summary.rejections.get("decided"):
        yield (
            f"of {counted(decided, 'candidate')} that the verifier rejected, people would accept"
            f" {summary.rejections.get('accepted', 0)}; these are no sample"
        )
    if summary.waiting:
        yield (
            f"{counted(summary.waiting, 'decision')} wait for the log; a driver or the next `balancer run`"
            " takes them in"
        )
    if summary.tied:
        yield f"people disagree about {listed(list(summary.tied), LISTED)}: the verifier's verdict stands"
    if shown := summary.known.get("shown"):
        accepted = summary.known.get("accepted", 0)
        yield f"of {counted(shown, 'image')} of the dataset, people accepted {accepted}"
    for name, agreement in summary.within.items():
        yield f"{name} gave the same answer again to {_agreed(agreement)}"
    for names, agreement in summary.between.items():
        yield f"{names} gave the same answer to {_agreed(agreement)}"
    if summary.quarantined:
        yield (
            f"quarantined until decided, and left out of exports (review.max_error):"
            f" {listed(list(summary.quarantined), LISTED)}"
        )


def _agreed(agreement: Agreement) -> str:
    kappa = "" if agreement.kappa is None else f" (kappa {agreement.kappa:.2f})"
    return f"{agreement.agreed} of {counted(agreement.pairs, 'image')}{kappa}"
