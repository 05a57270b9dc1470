"""Does a measure rank networks? Estimators of how well the order by a measure agrees with the order by an error.

Each compares the signs of differences over pairs of networks: Kendall's τ over all pairs; the granulated Ψ and the
conditional mutual information of Jiang et al. 2020 (Fantastic Generalization Measures and Where to Find Them); the
sign error over environments of Dziugaite et al. 2020 (In Search of Robust Measures of Generalization). Only the order
of a measure's values matters, so +inf is an ordinary value, and increasing functions of a measure give the same result.
A measure that is the same for all networks has no order: the estimate is then undefined (NaN), not 0.

Intervals are percentiles of a bootstrap that resamples trainings: every estimate is a ratio of sums over pairs (i, j),
in which a resample counts a pair c_i·c_j times, c how often each network was drawn.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Design",
    "Environment",
    "Estimate",
    "Ranking",
    "conditional_mutual_information",
    "granulated_psi",
    "kendall_tau",
    "pair_signs",
    "rank",
    "resample",
    "sign_errors",
    "significance_weight",
]

Array = NDArray[Any]

MIN_EFFECTIVE_SAMPLE = 12.0


@dataclass(frozen=True)
class Estimate:
    """A number with its bootstrap interval.

    Attributes:
        value: the estimate; NaN where it is undefined.
        low: lower end of the interval; NaN where it is undefined.
        high: upper end, likewise.
        reason: why it is undefined; empty where it is not.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    reason: str = ""

    @property
    def defined(self) -> bool:
        """Whether there is a number."""
        return not math.isnan(self.value)


@dataclass(frozen=True)
class Environment:
    """Pairs of networks between which one hyperparameter alone goes from one value to another.

    Attributes:
        axis: the hyperparameter.
        change: its two values, by their numbers in the design.
        first: (m,) networks with the one value.
        second: (m,) their partners with the other.
    """

    axis: str
    change: tuple[int, int]
    first: Array
    second: Array


@dataclass(frozen=True, eq=False)
class Design:
    """Which networks differ in which hyperparameters. Seeds are no hyperparameters: networks may repeat a setting.

    Attributes:
        axes: names of the hyperparameters.
        levels: (n, axes) number of each network's value on each axis, from 0.
        clusters: (n,) number of the training that a network comes from: networks that were pruned differently after one
            and the same training are one draw, not several. By default each is its own.
    """

    axes: tuple[str, ...]
    levels: Array
    clusters: Array | None = None

    @classmethod
    def of(cls, settings: Sequence[Mapping[str, Any]], clusters: Sequence[Any] | None = None) -> "Design":
        """The design of networks by their hyperparameters; axes on which they do not differ are left out.

        Args:
            settings: of each network, its value of every hyperparameter; values are told apart by their repr.
            clusters: of each network, what names its training.
        """
        names = [axis for axis in settings[0] if len({repr(setting[axis]) for setting in settings}) > 1]
        columns = [_numbered([setting[axis] for setting in settings]) for axis in names]
        levels = np.stack(columns, axis=1) if columns else np.zeros((len(settings), 0), dtype=int)
        return cls(tuple(names), levels, None if clusters is None else _numbered(clusters))

    def __len__(self) -> int:
        return len(self.levels)

    def subset(self, kept: Array) -> "Design":
        """The design of some of the networks, by their numbers; axes on which they do not differ remain."""
        return Design(self.axes, self.levels[kept], None if self.clusters is None else self.clusters[kept])

    @cached_property
    def alike(self) -> Array:
        """(axes, n, n): whether two networks have the same value on an axis."""
        columns = self.levels.T
        return columns[:, :, None] == columns[:, None, :]

    @cached_property
    def neighbours(self) -> Mapping[str, tuple[Array, Array, Array]]:
        """By axis: the pairs first < second that differ in it alone, and the number of each pair's group.

        A group is what Jiang et al. call a hyperparameter configuration with one axis free: all other values equal.
        """
        different = ~self.alike
        found = {}
        for number, axis in enumerate(self.axes):
            alone = different[number] & (different.sum(axis=0) == 1)
            first, second = np.nonzero(np.triu(alone))
            others = np.delete(self.levels, number, axis=1)[first]
            _, group = np.unique(others, axis=0, return_inverse=True)
            found[axis] = (first, second, group.reshape(-1))
        return found

    def environments(self, pooled: bool) -> list[Environment]:
        """The environments of Dziugaite et al. 2020.

        Args:
            pooled: whether one environment holds all settings of the other hyperparameters; False gives each setting
                its own, as in the source, which needs several seeds of each to have an effective sample.
        """
        found = []
        for axis, (first, second, group) in self.neighbours.items():
            if not len(first):
                continue
            levels = self.levels[:, self.axes.index(axis)]
            low, high = np.minimum(levels[first], levels[second]), np.maximum(levels[first], levels[second])
            keys = np.stack([low, high, np.zeros_like(group) if pooled else group], axis=1)
            values, number = np.unique(keys, axis=0, return_inverse=True)
            order = np.argsort(number.reshape(-1), kind="stable")
            ends = np.cumsum(np.bincount(number.reshape(-1), minlength=len(values)))[:-1]
            for (before, after, _), chosen in zip(values.tolist(), np.split(order, ends), strict=True):
                found.append(Environment(axis, (before, after), first[chosen], second[chosen]))
        return found


@dataclass(frozen=True)
class Ranking:
    """How well one measure ranks networks by one target.

    Attributes:
        num_networks: networks compared.
        tau: Kendall's τ-b over all pairs.
        tau_equal_size: the same over pairs of networks of one size, where a size is given.
        tau_gain: τ-b minus the τ-b of the size itself, on the same resamples.
        psi: the granulated ψ of each axis.
        mean_psi: Ψ, their mean; an axis along which the measure is constant counts as 0, as in the source.
        information: K, the normalized conditional mutual information, at least 0 and at most 1.
        worst_sign_error: the largest sign error of any environment with an effective sample.
        mean_sign_error: the mean over them.
        sign_errors: of each such environment, with its axis.
        pooled: whether the environments hold all settings of the other hyperparameters.
    """

    num_networks: int
    tau: Estimate
    tau_equal_size: Estimate
    tau_gain: Estimate
    psi: Mapping[str, Estimate]
    mean_psi: Estimate
    information: Estimate
    worst_sign_error: Estimate
    mean_sign_error: Estimate
    sign_errors: tuple[tuple[str, float], ...]
    pooled: bool


def pair_signs(values: Sequence[float] | Array) -> Array:
    """(n, n) float32 signs of v_i − v_j; equal infinities are equal.

    Raises:
        ValueError: a value is NaN.
    """
    array = np.asarray(values, dtype=float)
    if np.isnan(array).any():
        raise ValueError("a measure that is NaN has no place in an order: leave that network out")
    places = np.unique(array, return_inverse=True)[1].reshape(-1)
    return np.sign(places[:, None] - places[None, :]).astype(np.float32)


def resample(design: Design, resamples: int, seed: int = 0) -> Array:
    """(resamples, n) float32: how often a bootstrap over trainings draws each network.

    Args:
        design: whose clusters are drawn, as many as there are, with replacement.
        resamples: how many times.
        seed: seed of the draws.
    """
    clusters = np.arange(len(design)) if design.clusters is None else np.unique(design.clusters, return_inverse=True)[1]
    count = int(clusters.max()) + 1
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    return draws[:, clusters.reshape(-1)].astype(np.float32)


def significance_weight(difference: Array | float, num_samples: int) -> Array:
    """(w − 1/2)₊ with w = (1 − 2 exp(−n Δ²/2))₊², Dziugaite et al. 2020's weight of a pair of networks.

    By Hoeffding's inequality each of two errors on n test samples is within Δ/2 of its mean with probability at least
    1 − 2 exp(−2n(Δ/2)²), so w bounds from below the probability that the order seen is the true one.

    Args:
        difference: difference of the two errors, |Δ|.
        num_samples: n, the test samples.
    """
    within = 1 - 2 * np.exp(-num_samples * np.square(difference) / 2)
    return np.maximum(np.square(np.maximum(within, 0)) - 0.5, 0)


def kendall_tau(measure: Sequence[float] | Array, target: Sequence[float] | Array) -> float:
    """Kendall's τ-b: Σ s_ij t_ij / sqrt(Σ s_ij² · Σ t_ij²) over pairs, s and t the signs of the differences.

    Args:
        measure: (n,) values of a measure; infinities are allowed.
        target: (n,) errors.

    Returns:
        From −1 to 1; NaN if either is the same for all networks.

    Raises:
        ValueError: a value is NaN.

    Example:
        >>> kendall_tau([1, 2, 3, 4], [1, 2, 4, 3])
        0.6666666666666666
    """
    one = np.ones((1, len(measure)), dtype=np.float32)
    return float(_tau(pair_signs(measure), pair_signs(target), one)[0])


def granulated_psi(
    measure: Sequence[float] | Array, target: Sequence[float] | Array, design: Design
) -> tuple[dict[str, float], float]:
    """ψ of each axis and Ψ, their mean (Jiang et al. 2020, eq. 5 and 6).

    ψ is the mean over groups of networks that differ in one axis alone of the mean of s_ij t_ij over the group's pairs.

    Args:
        measure: (n,) values of a measure.
        target: (n,) errors.
        design: design of the n networks.

    Returns:
        ψ by axis, NaN where no two networks differ in it alone, or measure or target is constant in every group; and
        Ψ, the mean over axes along which the target changes, in which a constant measure counts as 0 (it tells nothing
        apart there); NaN where ψ is NaN on all axes.
    """
    one = np.ones((1, len(design)), dtype=np.float32)
    psi, mean = _psi(pair_signs(measure), pair_signs(target), design, one)
    return {axis: float(value[0]) for axis, value in psi.items()}, float(mean[0])


def conditional_mutual_information(
    measure: Sequence[float] | Array, target: Sequence[float] | Array, design: Design, max_size: int = 2
) -> float:
    """K = min_S I(V_μ; V_g | U_S)/H(V_g | U_S) (Jiang et al. 2020, §2.2.2), natural or binary logs alike.

    V are the signs of the differences of measure and target over pairs that are alike in the hyperparameters S, U_S
    their values there, S any set of at most `max_size`. Both orders of a pair are counted, so V_g is uniform on ±1 and
    with shares a of agreeing, b of opposed and t of pairs that the measure ties the information within one U_S is
    (a + b)·(1 − h(a/(a + b))) bits, h the binary entropy. Pairs whose target ties are left out, and so are sets S that
    leave no pair. It does not tell an order from its reverse.

    Returns:
        From 0 to 1; NaN if no pair is left or the measure is constant.
    """
    one = np.ones((1, len(design)), dtype=np.float32)
    return float(_information(pair_signs(measure), pair_signs(target), design, one, max_size)[0])


def sign_errors(
    measure: Sequence[float] | Array,
    target: Sequence[float] | Array,
    environments: Sequence[Environment],
    num_samples: int,
    min_effective_sample: float = MIN_EFFECTIVE_SAMPLE,
) -> list[tuple[Environment, float]]:
    """The weighted sign error of each environment (Dziugaite et al. 2020): Σ w_ij (1 − s_ij t_ij)/2 / Σ w_ij.

    Args:
        measure: (n,) values of a measure.
        target: (n,) errors.
        environments: pairs of them.
        num_samples: test samples behind the target, for `significance_weight`.
        min_effective_sample: least (Σw)²/Σw² of an environment; those below are left out.
    """
    signs, order = pair_signs(measure), pair_signs(target)
    errors = []
    for environment, weights in effective_environments(target, environments, num_samples, min_effective_sample):
        agree = signs[environment.first, environment.second] * order[environment.first, environment.second]
        errors.append((environment, float((weights * (1 - agree)).sum() / 2 / weights.sum())))
    return errors


def effective_environments(
    target: Sequence[float] | Array,
    environments: Sequence[Environment],
    num_samples: int,
    min_effective_sample: float = MIN_EFFECTIVE_SAMPLE,
) -> list[tuple[Environment, Array]]:
    """The environments whose effective sample suffices, with the weights of their pairs; arguments as `sign_errors`."""
    values, found = np.asarray(target, dtype=float), []
    for environment in environments:
        # No weights make the effective sample larger than the number of pairs.
        if len(environment.first) < min_effective_sample:
            continue
        weights = significance_weight(values[environment.first] - values[environment.second], num_samples)
        squares = float(np.square(weights).sum())
        # A hair less, because twelve equal weights are an effective sample of twelve but for rounding.
        if squares > 0 and float(weights.sum()) ** 2 / squares >= min_effective_sample * (1 - 1e-9):
            found.append((environment, weights))
    return found


def rank(
    measure: Sequence[float] | Array,
    target: Sequence[float] | Array,
    design: Design,
    *,
    num_samples: int,
    size: Sequence[float] | Array | None = None,
    resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
    min_effective_sample: float = MIN_EFFECTIVE_SAMPLE,
) -> Ranking:
    """Every estimate of one measure against one target, with bootstrap intervals.

    The environments are those of single settings where any of them has an effective sample, the pooled ones otherwise.

    Args:
        measure: (n,) values of a measure; a larger one should mean a larger target.
        target: (n,) errors.
        design: design of the n networks.
        num_samples: test samples behind the target.
        size: (n,) sizes of the networks, for τ between networks of one size.
        resamples: number of resamples of the bootstrap.
        level: probability that the intervals aim at.
        seed: seed of the bootstrap.
        min_effective_sample: as in `sign_errors`.

    Raises:
        ValueError: a value is NaN, or lengths differ.
    """
    if not len(measure) == len(target) == len(design):
        raise ValueError(f"{len(measure)} measures, {len(target)} targets and {len(design)} networks: expected as many")
    signs, order = pair_signs(measure), pair_signs(target)
    # The networks themselves first, so that one pass gives the estimates and their resamples.
    counts = np.concatenate([np.ones((1, len(design)), dtype=np.float32), resample(design, resamples, seed)])
    constant = "the measure is the same for all networks" if not signs.any() else ""
    if not order.any():
        constant = "the target is the same for all networks"

    def estimate(values: Array, reason: str) -> Estimate:
        return _estimate(values, level, constant or reason)

    tau = _tau(signs, order, counts)
    equal_size = gain = Estimate(math.nan, reason="no sizes are given")
    if size is not None:
        sizes = pair_signs(size)
        same = sizes == 0
        equal_size = estimate(_tau(signs * same, order * same, counts), "the measure is the same for equal sizes")
        gain = estimate(tau - _tau(sizes, order, counts), "all networks have one size")
    psi, mean = _psi(signs, order, design, counts)
    pooled, chosen = (
        False,
        effective_environments(target, design.environments(False), num_samples, min_effective_sample),
    )
    if not chosen:
        pooled = True
        chosen = effective_environments(target, design.environments(True), num_samples, min_effective_sample)
    errors = _sign_errors(signs, order, chosen, counts)
    # A constant measure has the sign error 1/2 everywhere, which is not a finding.
    worst = np.nanmax(errors, axis=1) if len(chosen) else np.full(len(counts), math.nan)
    average = np.nanmean(errors, axis=1) if len(chosen) else np.full(len(counts), math.nan)
    none = f"no environment has an effective sample of {min_effective_sample:g}"
    return Ranking(
        num_networks=len(design),
        tau=estimate(tau, ""),
        tau_equal_size=equal_size,
        tau_gain=gain,
        psi={axis: estimate(values, _why_not(axis, design, order)) for axis, values in psi.items()},
        mean_psi=estimate(mean, "the measure is the same along every axis"),
        information=estimate(_information(signs, order, design, counts), "no two networks differ in the target"),
        worst_sign_error=estimate(worst if signs.any() else np.full_like(worst, math.nan), none),
        mean_sign_error=estimate(average if signs.any() else np.full_like(average, math.nan), none),
        sign_errors=tuple(
            (environment.axis, float(error)) for (environment, _), error in zip(chosen, errors[0], strict=True)
        ),
        pooled=pooled,
    )


def _numbered(values: Sequence[Any]) -> Array:
    numbers = {value: number for number, value in enumerate(dict.fromkeys(map(repr, values)))}
    return np.array([numbers[repr(value)] for value in values])


def _why_not(axis: str, design: Design, order: Array) -> str:
    """Why ψ of an axis is undefined, if it is."""
    first, second, _ = design.neighbours[axis]
    if not len(first):
        return "no two networks differ in it alone"
    return "the measure is the same along it" if order[first, second].any() else "the target is the same along it"


def _estimate(values: Array, level: float, reason: str) -> Estimate:
    """The first of the values, and the interval of the others; resamples in which it is undefined are left out."""
    if math.isnan(values[0]):
        return Estimate(math.nan, reason=reason)
    resampled = values[1:][~np.isnan(values[1:])]
    if not len(resampled):
        return Estimate(float(values[0]))
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(values[0]), float(low), float(high))


def _pairs(matrix: Array, counts: Array) -> Array:
    """(resamples,) Σ_ij c_i M_ij c_j."""
    return np.einsum("bi,bi->b", counts @ matrix, counts, dtype=np.float64)


def _ratio(numerator: Array, denominator: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator > 0, numerator / denominator, math.nan)


def _tau(signs: Array, order: Array, counts: Array) -> Array:
    untied = _pairs(np.abs(signs), counts) * _pairs(np.abs(order), counts)
    return _ratio(_pairs(signs * order, counts), np.sqrt(untied))


def _psi(signs: Array, order: Array, design: Design, counts: Array) -> tuple[dict[str, Array], Array]:
    found: dict[str, Array] = {}
    filled = []
    for axis, (first, second, group) in design.neighbours.items():
        # Pruning strength, for one, cannot change the error of the unpruned network: that says nothing of a measure.
        if not order[first, second].any():
            found[axis] = np.full(len(counts), math.nan)
            continue
        pairs = counts[:, first] * counts[:, second]
        member = np.eye(int(group.max()) + 1, dtype=np.float32)[group]
        agree, told = signs[first, second] * order[first, second], np.abs(signs[first, second])
        by_group = _ratio((pairs * agree) @ member, pairs @ member)
        present = (pairs @ member > 0).sum(axis=1)
        psi = _ratio(np.nansum(by_group, axis=1), present)
        filled.append(np.nan_to_num(psi))
        found[axis] = np.where(pairs @ told > 0, psi, math.nan)
    if not filled or all(np.isnan(values[0]) for values in found.values()):
        return found, np.full(len(counts), math.nan)
    return found, np.mean(filled, axis=0)


def _information(signs: Array, order: Array, design: Design, counts: Array, max_size: int = 2) -> Array:
    agree = np.float32(signs * order > 0)
    opposed = np.float32(signs * order < 0)
    paired = np.abs(order)
    least = np.full(len(counts), math.nan)
    if not signs.any():
        return least
    for size in range(max_size + 1):
        for chosen in combinations(range(len(design.axes)), size):
            _, group = np.unique(design.levels[:, list(chosen)], axis=0, return_inverse=True)
            information, total = np.zeros(len(counts)), np.zeros(len(counts))
            for members in _members(group.reshape(-1)):
                block, drawn = np.ix_(members, members), counts[:, members]
                a, b, all_pairs = (_pairs(matrix[block], drawn) for matrix in (agree, opposed, paired))
                information += (a + b) * (1 - _entropy(_ratio(a, a + b)))
                total += all_pairs
            least = np.fmin(least, _ratio(information, total))
    return least


def _members(group: Array) -> list[Array]:
    return [np.nonzero(group == number)[0] for number in range(int(group.max()) + 1)] if len(group) else []


def _entropy(share: Array) -> Array:
    """The binary entropy in bits; 1 of an undefined share, which has no pairs."""
    inner = np.clip(np.nan_to_num(share, nan=0.5), 1e-300, 1 - 1e-16)
    return -(inner * np.log2(inner) + (1 - inner) * np.log2(1 - inner))


def _sign_errors(signs: Array, order: Array, chosen: Sequence[tuple[Environment, Array]], counts: Array) -> Array:
    """(resamples, environments) sign errors; NaN where a resample has no pair of an environment."""
    columns = []
    for environment, weights in chosen:
        first, second = environment.first, environment.second
        pairs = counts[:, first] * counts[:, second] * weights.astype(np.float32)
        wrong = (1 - signs[first, second] * order[first, second]) / 2
        columns.append(_ratio(pairs @ wrong, pairs.sum(axis=1)))
    return np.stack(columns, axis=1) if columns else np.zeros((len(counts), 0))
