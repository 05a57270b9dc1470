"""What a row of the ladder is, and the steps that many of them share."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from milkshake_mbp.theory.measured import Network
from milkshake_mbp.theory.perturbation import logsumexp, safe_log

__all__ = [
    "Bound",
    "Convention",
    "Row",
    "Value",
    "best_margin",
    "minimize_over_margins",
    "over_gamma_squared",
    "risk_bound",
    "sqrt_over_n",
]

Convention = Literal["paper", "leading", "rigorous", "measure"]


@dataclass(frozen=True)
class Bound:
    """One row of the ladder, evaluated.

    Attributes:
        name: the bound's name; the same in every file, chart and table.
        convention: which of the spec's conventions it follows.
        log_value: natural log of the bound.
        terms: what it is made of, by name.
        holds_with: the probability with which it holds as computed; None where the source hides a constant.
        claimed: the probability that the source states, where it states one.
        applies: whether the conditions that the source needs hold.
        reason: why it does not apply; empty if it does.
        vacuous: whether the bound is at least 1 − 1/k, chance; None for a row that is not on the risk scale.
        trivial: whether the bound is at least 1; None for a row that is not on the risk scale.
    """

    name: str
    convention: Convention
    log_value: float
    terms: Mapping[str, float] = field(default_factory=dict)
    holds_with: float | None = None
    claimed: float | None = None
    applies: bool = True
    reason: str = ""
    vacuous: bool | None = None
    trivial: bool | None = None


@dataclass(frozen=True)
class Value:
    """What a row's function returns: its log value and, where there is something to say, the rest of a `Bound`."""

    log_value: float
    terms: Mapping[str, float] = field(default_factory=dict)
    claimed: float | None = None
    reason: str = ""
    holds_with: float | None = None


@dataclass(frozen=True)
class Row:
    """One entry of the ladder's table.

    Attributes:
        name: the bound's name.
        convention: which of the spec's conventions it follows.
        evaluate: its formula.
        reference: where it comes from.
        label: its name for people.
        risk: whether it is on the risk scale, so that 1 − 1/k means chance.
        counts: whether it survives biases: it counts parameters and rests on no perturbation lemma.
        needs: what of the `Network` must have been measured; without it the row is left out.
    """

    name: str
    convention: Convention
    evaluate: Callable[[Network], Value]
    label: str
    reference: str
    risk: bool = True
    counts: bool = False
    needs: tuple[str, ...] = ()


def risk_bound(risk: float, log_complexity: float, **terms: float) -> Value:
    """R̂ + complexity, and what it is made of."""
    return Value(
        logsumexp([safe_log(risk), log_complexity]),
        {"empirical_risk": risk, "log_complexity": log_complexity, **terms},
    )


def minimize_over_margins(net: Network, log_complexity: Callable[[Tensor], Tensor], **terms: float) -> Value:
    """Min over the positive training margins γ of R̂_γ + complexity(γ); +inf if no margin is positive.

    Args:
        net: the network.
        log_complexity: from (m,) ln γ to (m,) logs of the complexity.
        **terms: what else to report.
    """
    positive = net.positive_margins
    if not positive.values.numel():
        return Value(math.inf, terms, reason="no training margin is positive")
    log_complexities = log_complexity(positive.logs)
    best = int(torch.logaddexp(positive.log_risks, log_complexities).argmin())
    gamma, risk = float(positive.values[best]), float(positive.risks[best])
    return risk_bound(risk, float(log_complexities[best]), gamma=gamma, **terms)


def best_margin(net: Network, log_numerator: float, **terms: float) -> Value:
    """Min over the positive training margins γ of R̂_γ + e^{log_numerator}/γ."""
    return minimize_over_margins(net, lambda log_gamma: log_numerator - log_gamma, **terms)


def sqrt_over_n(net: Network, total: float) -> float:
    """Ln sqrt(total / n)."""
    return 0.5 * (safe_log(total) - math.log(net.num_samples))


def over_gamma_squared(net: Network, log_numerator: float) -> Value:
    """A squared complexity over γ²; +inf if γ, the smallest margin, is not positive."""
    return Value(math.inf if math.isinf(net.log_gamma) else log_numerator - 2 * net.log_gamma)
