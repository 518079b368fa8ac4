"""Latencies in buckets, so that rounds are put together by counts: percentiles are never averaged. Pure.

A bucket is 2 % wide, from a microsecond on, so what is read out is within 1 % of what was measured (as in
HdrHistogram with two digits).
"""

import math
from collections.abc import Iterable, Mapping

GROWTH = 1.02
_STEP = math.log(GROWTH)
_LEAST = 1e-6

Histogram = dict[int, int]


def counted(seconds: Iterable[float]) -> Histogram:
    """The histogram of latencies in seconds: by bucket how many there are."""
    found: Histogram = {}
    for each in seconds:
        bucket = math.floor(math.log(max(each, _LEAST) / _LEAST) / _STEP)
        found[bucket] = found.get(bucket, 0) + 1
    return found


def merged(histograms: Iterable[Mapping[int, int]]) -> Histogram:
    """All of them in one."""
    found: Histogram = {}
    for histogram in histograms:
        for bucket, count in histogram.items():
            found[bucket] = found.get(bucket, 0) + count
    return found


def quantile(histogram: Mapping[int, int], share: float) -> float:
    """The least latency that is not below `share` of them all (nearest rank), in milliseconds; 0 of none."""
    rank = max(1, math.ceil(share * sum(histogram.values())))
    for bucket in sorted(histogram):
        rank -= histogram[bucket]
        if rank <= 0:
            return _LEAST * math.pow(GROWTH, bucket + 0.5) * 1000
    return 0.0
