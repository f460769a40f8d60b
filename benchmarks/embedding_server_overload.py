"""What becomes of a server that is offered twice its capacity, in a table."""

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.embedding_server_tables import MOST_OTHERS
from benchmarks.http_load import Answer, Load, percentile
from benchmarks.report import Cell, table

LEAST_GOODPUT, LEAST_ADMITTED, MOST_GROWTH = 0.9, 0.99, 1.25


class Overload(NamedTuple):
    """What twice the capacity has shown.

    Attributes:
        peak: Requests a second of 64 clients, just before and after.
        load: What came of every request.
        before: Most memory it has ever had resident until then, MB.
        after: The same when it was over.
        others: Share of all processors that anybody else has used meanwhile.
    """

    peak: float
    load: Load
    before: float
    after: float
    others: float

    @property
    def goodput(self) -> float:
        """Good answers that came while it lasted, as a share of the peak."""
        ended = self.ended
        good = sum(answer.done <= ended for answer in self.load.good)
        return good / self.load.seconds / self.peak

    @property
    def ended(self) -> float:
        """When the last new request was sent, about."""
        return min(answer.due for answer in self.load.answers) + self.load.seconds

    @property
    def refused(self) -> list[Answer]:
        """Answers that were 429, to those who came for the first time."""
        return [one for one in self.load.answers if one.status == 429 and not one.is_return]

    @property
    def returns(self) -> list[Answer]:
        """Answers to those who came back."""
        return [answer for answer in self.load.answers if answer.is_return]

    @property
    def statuses(self) -> Counter[int]:
        return Counter(answer.status for answer in self.load.answers)

    def figures(self) -> dict[str, object]:
        """Return it as plain JSON types."""
        return {
            "peak": self.peak,
            "offered": len(self.load.answers) - len(self.returns),
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "goodput": self.goodput,
            "returned": len(self.returns),
            "returned_and_got_in": sum(answer.is_good for answer in self.returns),
            "peak_megabytes": [self.before, self.after],
            "others": self.others,
        }


def overload_table(found: Overload) -> str:
    """Return what is asked of a server that is offered too much, and what it did."""
    refused, returns, ended = found.refused, found.returns, found.ended
    odd = sum(count for status, count in found.statuses.items() if status not in {200, 429})
    untold = sum(answer.retry_after is None for answer in refused)
    growth = found.after / found.before
    fresh = len(found.load.answers) - len(returns)
    good = [answer.seconds for answer in found.load.good]
    # Who was disturbed was slower than he is; the rest is as it is.
    is_enough = found.goodput >= LEAST_GOODPUT if found.others <= MOST_OTHERS else None
    rows: list[list[object]] = [
        ["goodput, of the peak", f"≥ {LEAST_GOODPUT}", Cell(f"{found.goodput:.2f}", is_enough)],
        ["answers other than 200 and 429", "0", Cell(str(odd), odd == 0)],
        ["429 without Retry-After", "0", Cell(str(untold), untold == 0)],
        [
            "peak of memory, of that before",
            f"≤ {MOST_GROWTH}",
            Cell(f"{growth:.2f}", growth <= MOST_GROWTH),
        ],
        ["came back as told, and got in", f"≥ {LEAST_ADMITTED}", _share(returns, LEAST_ADMITTED)],
        ["- while it lasted", "", _share([one for one in returns if one.due <= ended])],
        ["- after it", "", _share([one for one in returns if one.due > ended])],
        ["told to come later than was waited", "", len(refused) - untold - len(returns)],
        ["new requests that were refused", "", f"{len(refused) / fresh:.0%} of {fresh:,}"],
        ["Retry-After, s", "", _range([one.retry_after for one in refused if one.retry_after])],
        ["p99 of those admitted, s", "", f"{percentile(good, 99):.2f}"],
        ["p99 of a refusal, ms", "", _milliseconds([one.seconds for one in refused])],
    ]
    return table(("", "asked", "measured"), rows)


def _share(answers: Sequence[Answer], least: float | None = None) -> str:
    if not answers:
        return "nobody did"
    share = sum(answer.is_good for answer in answers) / len(answers)
    text = f"{share:.1%} of {len(answers):,}"
    return text if least is None else str(Cell(text, share >= least))


def _range(values: Sequence[float]) -> str:
    if not values:
        return "nobody was refused"
    return f"{min(values):g} to {max(values):g}, median {statistics.median(values):g}"


def _milliseconds(values: Sequence[float]) -> str:
    return f"{1000 * percentile(values, 99):.1f}" if values else "nobody was refused"
