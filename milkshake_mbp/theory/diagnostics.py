"""The theory's predictions about pruning and the measured values, over strengths d: spread, sparsity, normality."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from milkshake_mbp.theory.pruning import keep_probability

__all__ = ["Normality", "Spread", "normal_quantiles", "spread_over_strengths"]


@dataclass(frozen=True)
class Spread:
    """One layer pruned at each of m strengths, by one draw of Algorithm 1.

    Attributes:
        column_max: (m,) j_r, the most entries kept in a column.
        row_max: (m,) j_c, the most entries kept in a row.
        kept: (m,) entries kept.
    """

    column_max: Tensor
    row_max: Tensor
    kept: Tensor


def spread_over_strengths(thresholds: Tensor, strengths: Sequence[float], keep_diagonal: bool = True) -> Spread:
    """Count what is kept at every strength in one pass: entry (i, j) is pruned from its threshold on.

    Args:
        thresholds: (out, in), from `prune_thresholds`.
        strengths: d, increasing.
        keep_diagonal: whether entries (i, i) are spared.
    """
    grid = torch.tensor(strengths, dtype=torch.float64, device=thresholds.device)
    # How many of the strengths an entry survives.
    survived = torch.searchsorted(grid, thresholds.contiguous(), right=True)
    if keep_diagonal:
        survived.diagonal().fill_(len(grid))

    def per_line(counts: Tensor) -> Tensor:
        lines, levels = counts.shape[0], len(grid) + 1
        cells = counts + levels * torch.arange(lines, device=counts.device).unsqueeze(1)
        histogram = torch.bincount(cells.flatten(), minlength=lines * levels).view(lines, levels)
        return histogram.flip(1).cumsum(1).flip(1)[:, 1:]

    rows, columns = per_line(survived), per_line(survived.T)
    return Spread(column_max=columns.amax(dim=0), row_max=rows.amax(dim=0), kept=rows.sum(dim=0))


@dataclass(frozen=True)
class Normality:
    """How far a layer's entries are from N(0, Ψ), which Assumption 3.1 takes them to be, and what that does to χ.

    Attributes:
        mean_over_deviation: mean of the entries over their standard deviation; 0 as assumed.
        skewness: 0 for a normal distribution.
        excess_kurtosis: 0 for a normal distribution.
        distance: Kolmogorov–Smirnov distance, the largest gap between the distribution functions, to N(0, Ψ).
        predicted_chi: χ(d) of Lemma 5.1.
        expected_chi: mean of 1 − exp(−a²/(dΨ)), the share of these entries that Algorithm 1 keeps on average.
    """

    mean_over_deviation: float
    skewness: float
    excess_kurtosis: float
    distance: float
    predicted_chi: float
    expected_chi: float

    @classmethod
    def measure(cls, weight: Tensor, d: float) -> "Normality":
        """Measure an (out, in) weight at strength d.

        Raises:
            ValueError: d is negative, or the entries are all alike.
        """
        entries = weight.detach().double().flatten()
        variance = float(entries.var(correction=0))
        if not variance > 0:
            raise ValueError("the entries of the layer are all alike, so they have no distribution to compare")
        values = (entries / variance**0.5).sort().values.cpu().numpy()
        below = stats.norm.cdf(values)
        ranks = np.arange(len(values) + 1) / len(values)
        return cls(
            mean_over_deviation=float(values.mean()),
            skewness=float(stats.skew(values)),
            excess_kurtosis=float(stats.kurtosis(values)),
            distance=float(max((ranks[1:] - below).max(), (below - ranks[:-1]).max())),
            predicted_chi=keep_probability(d),
            expected_chi=float(-np.expm1(-(values**2) / d).mean()) if d else 1.0,
        )


def normal_quantiles(weight: Tensor, points: int = 201) -> tuple[Tensor, Tensor]:
    """Quantiles of N(0, 1), and of the entries over √Ψ, at the same ranks; equal if Assumption 3.1 holds.

    Args:
        weight: (out, in), not constant.
        points: how many at most, evenly spaced on the normal scale, both extremes among them.

    Returns:
        Normal quantiles and quantiles of the layer, as many of each, increasing, float64 on the CPU.
    """
    values = weight.detach().double().flatten().sort().values.cpu()
    reach = -float(torch.special.ndtri(torch.tensor(0.5 / len(values), dtype=torch.float64)))
    wanted = torch.special.ndtr(torch.linspace(-reach, reach, points, dtype=torch.float64))
    ranks = (wanted * len(values) - 0.5).round().long().clamp(0, len(values) - 1).unique()
    return torch.special.ndtri((ranks.double() + 0.5) / len(values)), values[ranks] / values.std(correction=0)
