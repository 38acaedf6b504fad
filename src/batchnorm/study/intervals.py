"""Intervals for a median that keep their level at a handful of seeds, also where seeds are added until they decide.

An interval from the k-th smallest to the k-th largest of n samples misses the median of any continuous distribution
with probability 2·P(Binomial(n, ½) < k). For six samples, k = 1 misses it in 1 of 32 cases; fewer than six cannot make
a 95 % interval. Where the samples are looked at several times, each look spends a part of the 5 %.

Source: Hollander, Wolfe & Chicken 2014, Nonparametric Statistical Methods, section 3.6; Jennison & Turnbull 2000, Group
Sequential Methods, chapter 7, for looking several times.
"""

import math
from collections.abc import Sequence
from functools import cache

LEVEL = 0.95
FEWEST = 6
SCHEDULE = (6, 12, 20, 40, 80)


def looks(seeds: int) -> tuple[int, ...]:
    """Return the numbers of seeds at which a study may stop, if it may use so many at the most.

    >>> looks(12), looks(15), looks(6), looks(3)
    ((6, 12), (6, 12, 15), (6,), (3,))
    """
    return (*(look for look in SCHEDULE if look < seeds), seeds)


def _decided(survivors: Sequence[float], rank: int) -> float:
    """Return the probability that an interval of this rank excludes the median, given the ways to get here."""
    last = len(survivors) - 1
    return sum(p for above, p in enumerate(survivors) if above < rank or above > last - rank)


@cache
def ranks(schedule: tuple[int, ...]) -> dict[int, int]:
    """Return for each look the rank k of the samples that bound the interval; 0 where there can be no interval.

    Each look takes the largest k with which the probability to exclude the true median at this look or an earlier one
    is at most 5 %. The probability is exact: the number of samples above the median is followed from look to look.

    >>> ranks((6, 12)), ranks((3,)), ranks((10,))
    ({6: 1, 12: 2}, {3: 0}, {10: 2})
    """
    survivors, spent, chosen = [1.0], 0.0, dict[int, int]()
    for look in schedule:
        while len(survivors) <= look:
            survivors = [(a + b) / 2 for a, b in zip([0.0, *survivors], [*survivors, 0.0], strict=True)]
        rank = 0
        while 2 * (rank + 1) <= look and spent + _decided(survivors, rank + 1) <= 1.0 - LEVEL:
            rank += 1
        spent += _decided(survivors, rank)
        chosen[look] = rank
        survivors = [p if rank <= above <= look - rank else 0.0 for above, p in enumerate(survivors)]
    return chosen


def level(schedule: tuple[int, ...]) -> float:
    """Return the least probability that the interval at the last look, or where a study stops, holds the median.

    >>> level((6,)), level((6, 12)) >= 0.95, level((3,))
    (0.96875, True, 1.0)
    """
    survivors, missed = [1.0], 0.0
    for look, rank in ranks(schedule).items():
        while len(survivors) <= look:
            survivors = [(a + b) / 2 for a, b in zip([0.0, *survivors], [*survivors, 0.0], strict=True)]
        missed += _decided(survivors, rank)
        survivors = [p if rank <= above <= look - rank else 0.0 for above, p in enumerate(survivors)]
    return 1.0 - missed


def interval(least: Sequence[float], most: Sequence[float], schedule: tuple[int, ...]) -> tuple[float, float]:
    """Return the interval of the median of samples that are known to lie between `least` and `most`.

    Args:
        least: The least each sample can be: the sample itself where it is known.
        most: The most each sample can be.
        schedule: The looks of the study; their last one at most is the number of samples.

    >>> interval([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, math.inf], (6,))
    (1, inf)
    """
    count = len(least)
    upto = tuple(look for look in schedule if look < count)
    rank = ranks((*upto, count))[count]
    if rank == 0:
        return -math.inf, math.inf
    return sorted(least)[rank - 1], sorted(most)[count - rank]
