"""How sure a mean and a difference of means over queries are (resampling, Smucker et al. 2007)."""

from collections.abc import Sequence

import numpy as np

SIGNIFICANT = 0.05


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean of per-query values, from 2,000 samples of a fixed seed."""
    values = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(0)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(2000)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def paired(ours: Sequence[float], theirs: Sequence[float]) -> dict:
    """Of per-query values in one order, ours - theirs: mean difference, interval, p, queries won, lost and tied."""
    first, second = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)  # [Q]
    gain = first - second
    return {
        "difference": float(first.mean() - second.mean()),
        "interval": interval(gain),
        "p": paired_p(first, second),
        "won": int((gain > 1e-9).sum()),
        "lost": int((gain < -1e-9).sum()),
        "tied": int((np.abs(gain) <= 1e-9).sum()),
    }


def paired_p(ours: Sequence[float], theirs: Sequence[float], seed: int = 0, samples: int = 10_000) -> float:
    """Two-sided p of the paired randomisation test: how often random signs reach the mean difference seen."""
    difference = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    seen = abs(difference.sum())
    rng = np.random.default_rng(seed)
    reached = 1  # the seen signs are one of the possible draws
    for start in range(0, samples, 1000):
        signs = rng.integers(0, 2, (min(1000, samples - start), len(difference)), dtype=np.int8) * 2 - 1
        reached += int((np.abs(signs @ difference) >= seen - 1e-12).sum())
    return reached / (samples + 1)
