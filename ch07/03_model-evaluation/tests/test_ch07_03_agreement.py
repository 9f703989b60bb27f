"""Measures of agreement against scipy's, on lists with many ties and gaps.

Run it:  pytest ch07/03_model-evaluation/tests/test_ch07_03_agreement.py
"""

import random

import pytest
from agreement import both_scored, kendall_tau_b, pearson, ranks, right_above_wrong, spearman
from scipy import stats


def lists(seed, length=60, gaps=True):
    """Two related lists of scores with ties, and with a None here and there."""
    rng = random.Random(seed)
    first = [rng.choice([0, 50, 85, 90, 95, 100]) for _ in range(length)]
    second = [max(0, min(100, value + rng.choice([-40, -10, 0, 0, 10]))) for value in first]
    if gaps:
        first[3], second[5], first[8], second[8] = None, None, None, None
    return first, second


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(pearson, stats.pearsonr), (spearman, stats.spearmanr), (kendall_tau_b, stats.kendalltau)],
    ids=lambda f: f.__name__,
)
def test_equal_to_scipy_after_a_gap_has_dropped_both_sides(ours, theirs, seed):
    first, second = lists(seed)
    kept = [(x, y) for x, y in zip(first, second) if x is not None and y is not None]
    assert len(kept) == 57
    assert ours(first, second) == pytest.approx(theirs(*zip(*kept))[0], abs=1e-12)


def test_a_gap_does_not_shift_the_pairs():
    assert both_scored([1, None, 3, 4], [5, 6, None, 8]) == ([1, 4], [5, 8])
    with pytest.raises(ValueError, match="3 and 4 scores"):
        both_scored([1, 2, 3], [1, 2, 3, 4])


def test_ranks_share_the_mean_of_tied_places():
    assert ranks([10, 30, 20, 20]) == [1, 4, 2.5, 2.5]
    assert ranks([7, 7, 7]) == [2, 2, 2]


@pytest.mark.parametrize("measure", [pearson, spearman, kendall_tau_b])
def test_a_judge_that_always_says_the_same_agrees_with_nobody(measure):
    assert measure([85, 85, 85], [1, 2, 3]) is None and measure([1, 2, 3], [85, 85, 85]) is None
    assert measure([], []) is None and measure([None, 1], [1, None]) is None


def test_measures_differ_where_they_should():
    straight, curved = [1, 2, 3, 4, 5, 6], [1, 2, 4, 8, 16, 32]
    assert pearson(straight, curved) < 0.95 and spearman(straight, curved) == pytest.approx(1) == kendall_tau_b(straight, curved)
    assert pearson([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)


@pytest.mark.parametrize("seed", range(3))
def test_right_above_wrong_is_the_area_under_the_roc_curve(seed):
    scores, _ = lists(seed, gaps=False)
    right = [random.Random(n).random() < (score + 20) / 140 for n, score in enumerate(scores)]
    good, bad = ([score for score, is_right in zip(scores, right) if is_right == kind] for kind in (True, False))
    area = stats.mannwhitneyu(good, bad).statistic / (len(good) * len(bad))
    assert right_above_wrong(scores, right) == pytest.approx(area)
    assert right_above_wrong([None, *scores, 5], [True, *right, None]) == pytest.approx(area)


def test_right_above_wrong_of_a_guess_and_of_nothing():
    assert right_above_wrong([85, 85, 85], [True, False, False]) == 0.5
    assert right_above_wrong([1, 100], [False, True]) == 1 and right_above_wrong([1, 100], [True, False]) == 0
    assert right_above_wrong([1, 2], [True, True]) is None
