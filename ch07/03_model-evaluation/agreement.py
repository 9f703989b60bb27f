"""Do two judges agree? Pearson, Spearman and Kendall's tau-b of two lists of scores, and how often right answers beat wrong ones.

Lists are in the order of the data; a score that could not be read is None, and an entry with a None in either list is left out
of both. scores/correlation-analysis.ipynb builds these functions and compares them with scipy's.
"""

from collections.abc import Sequence
from itertools import combinations


def both_scored(first: Sequence, second: Sequence) -> tuple[list, list]:
    """Return the two lists without the places where either has None. ValueError if they are not of equal length. Section 2."""
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} scores: they belong to different entries")
    pairs = [(x, y) for x, y in zip(first, second) if x is not None and y is not None]
    return [x for x, _ in pairs], [y for _, y in pairs]


def pearson(first: Sequence, second: Sequence) -> float | None:
    """Return how well a straight line describes the pairs, -1 to 1; None if one of the lists does not vary. Section 3."""
    x, y = both_scored(first, second)
    dx = [value - sum(x) / len(x) for value in x]  # distance from the mean
    dy = [value - sum(y) / len(y) for value in y]
    squares = sum(a * a for a in dx) * sum(b * b for b in dy)
    return sum(a * b for a, b in zip(dx, dy)) / squares**0.5 if squares > 1e-12 else None


def ranks(values: Sequence) -> list[float]:
    """Return each value's place from smallest (1) to largest; equal values share the mean of their places. Section 3."""
    return [sum(other < value for other in values) + (1 + sum(other == value for other in values)) / 2 for value in values]


def spearman(first: Sequence, second: Sequence) -> float | None:
    """Return Pearson's correlation of the ranks, None if one of the lists does not vary. Section 3."""
    x, y = both_scored(first, second)
    return pearson(ranks(x), ranks(y))


def kendall_tau_b(first: Sequence, second: Sequence) -> float | None:
    """Return (pairs of entries in the same order - in opposite order) / mean number of pairs that are no ties. Section 3.

    The mean is the geometric one, over the two lists; None if one of them does not vary.
    """
    x, y = both_scored(first, second)
    order = [((a > b) - (a < b), (c > d) - (c < d)) for (a, c), (b, d) in combinations(zip(x, y), 2)]
    not_tied = sum(s != 0 for s, _ in order) * sum(t != 0 for _, t in order)
    return sum(s * t for s, t in order) / not_tied**0.5 if not_tied else None


def right_above_wrong(scores: Sequence, right: Sequence) -> float | None:
    """Return the share of pairs (a right answer, a wrong one) in which the right one has the higher score; a tie is half. Section 5.

    0.5 is what guessing gives, 1 what a perfect judge gives. None if there are no such pairs.
    """
    scores, right = both_scored(scores, right)
    good = [score for score, is_right in zip(scores, right) if is_right]
    bad = [score for score, is_right in zip(scores, right) if not is_right]
    wins = sum((g > b) + (g == b) / 2 for g in good for b in bad)
    return wins / (len(good) * len(bad)) if good and bad else None
