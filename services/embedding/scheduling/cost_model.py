"""How long a batch takes: t = a + b * tokens + c * sum(length^2), fitted as batches end.

Weighted least squares with forgetting. Errors are relative, since a clock on a shared machine errs
by percent and not by microseconds. A batch that took absurdly long counts as moderately long,
unless the next ones do too: then the machine has changed, and what was known before hardly counts.
"""

from __future__ import annotations

from collections.abc import Sequence

# Before anything has been measured; the first batch scales it to the machine.
_FIRST_GUESS = (2e-3, 5e-5, 0.0)
_MEMORY = 0.98  # of the weight of what is known, for each further batch
_OUTLIER = 2.0  # times as long, or as short, as predicted
_BELIEVED = 3  # outliers on the same side, one after the other
_DOUBTED = 0.05  # of the weight of what was known, once they are believed
# Share of its diagonal by which the last solution is held: it decides what batches that are all
# alike leave open, and little else.
_HOLD = 1e-3
_SHORTEST = 1e-7


class CostModel:
    """Seconds of a batch, from its tokens and the sum of their squares.

    Attributes:
        coefficients: Seconds a batch, a token and a squared token; never negative.
        observed_count: Batches it has learned from.
    """

    __slots__ = ("_moments", "_outliers", "_products", "coefficients", "observed_count")

    def __init__(self) -> None:
        self.coefficients = _FIRST_GUESS
        # Upper triangle of sum(x x^T), and sum(x y), of weighted observations.
        self._moments = [0.0] * 6
        self._products = [0.0] * 3
        self._outliers = 0
        self.observed_count = 0

    def predict(self, tokens: float, squares: float) -> float:
        """Return the seconds of a batch."""
        a, b, c = self.coefficients
        return max(_SHORTEST, a + b * tokens + c * squares)

    def observe(self, tokens: float, squares: float, seconds: float) -> None:
        """Learn from a batch that took `seconds`."""
        predicted = self.predict(tokens, squares)
        seconds = max(seconds, _SHORTEST)
        if not self.observed_count:
            a, b, c = (value * seconds / predicted for value in _FIRST_GUESS)
            self.coefficients = a, b, c
            predicted = seconds
        self.observed_count += 1
        seconds = self._bounded(seconds, predicted)
        # Errors are relative to what is expected, or to what was seen where that is no guide.
        scale = predicted if not self._outliers else seconds
        row = (1.0 / scale, tokens / scale, squares / scale)
        ratio = seconds / scale
        old = self._moments
        self._moments = [
            _MEMORY * old[0] + row[0] * row[0],
            _MEMORY * old[1] + row[0] * row[1],
            _MEMORY * old[2] + row[0] * row[2],
            _MEMORY * old[3] + row[1] * row[1],
            _MEMORY * old[4] + row[1] * row[2],
            _MEMORY * old[5] + row[2] * row[2],
        ]
        self._products = [
            _MEMORY * product + value * ratio
            for product, value in zip(self._products, row, strict=True)
        ]
        self._solve()

    def _bounded(self, seconds: float, predicted: float) -> float:
        side = (seconds > _OUTLIER * predicted) - (seconds * _OUTLIER < predicted)
        if not side:
            self._outliers = 0
            return seconds
        self._outliers = side + (self._outliers if self._outliers * side > 0 else 0)
        if abs(self._outliers) < _BELIEVED:
            return predicted * _OUTLIER**side
        self._moments = [_DOUBTED * value for value in self._moments]
        self._products = [_DOUBTED * value for value in self._products]
        return seconds

    def _solve(self) -> None:
        xx, xy, xz, yy, yz, zz = self._moments
        matrix = ((xx, xy, xz), (xy, yy, yz), (xz, yz, zz))
        found = [0.0, 0.0, 0.0]
        free = [0, 1, 2]
        while free:
            solution = _solve(matrix, self._products, self.coefficients, free)
            lowest = min(range(len(free)), key=solution.__getitem__)
            if solution[lowest] >= 0:
                for index, value in zip(free, solution, strict=True):
                    found[index] = value
                break
            # A cost below zero is noise: it is none, and the others are fitted anew.
            del free[lowest]
        a, b, c = found
        self.coefficients = a, b, c


def _solve(
    matrix: Sequence[Sequence[float]],
    products: Sequence[float],
    last: Sequence[float],
    free: Sequence[int],
) -> list[float]:
    """Solve for the `free` unknowns, the others being 0, by Gaussian elimination of unit scale."""
    scales = [matrix[index][index] ** -0.5 for index in free]
    rows = [
        [matrix[i][j] * scale * other for j, other in zip(free, scales, strict=True)]
        + [products[i] * scale + _HOLD * last[i] / scale]
        for i, scale in zip(free, scales, strict=True)
    ]
    size = len(rows)
    for pivot in range(size):
        rows[pivot][pivot] += _HOLD
    for pivot in range(size):
        for below in range(pivot + 1, size):
            factor = rows[below][pivot] / rows[pivot][pivot]
            for column in range(pivot, size + 1):
                rows[below][column] -= factor * rows[pivot][column]
    solution = [0.0] * size
    for pivot in reversed(range(size)):
        known = sum(rows[pivot][column] * solution[column] for column in range(pivot + 1, size))
        solution[pivot] = (rows[pivot][size] - known) / rows[pivot][pivot]
    return [value * scale for value, scale in zip(solution, scales, strict=True)]
