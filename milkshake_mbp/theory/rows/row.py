"""Rows of the ladder, their conventions, and computations that many rows share."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from milkshake_mbp.theory.measured import Measured
from milkshake_mbp.theory.perturbation import logsumexp, safe_log

__all__ = [
    "CONVENTIONS",
    "SEQUENCE",
    "Bound",
    "Convention",
    "Row",
    "Value",
    "best_margin",
    "minimize_over_margins",
    "noise_bound",
    "over_gamma_squared",
    "risk_bound",
    "sqrt_over_n",
]


SEQUENCE = ("wired", "sequence")
"""What a bound of fully connected networks needs of a network's shape to hold for its unrolled operators."""


@dataclass(frozen=True)
class Convention:
    """A way of computing published bounds.

    Attributes:
        name: its name in files, charts and tables.
        title: its name in reports.
        caption: explanation of its numbers, in one or two sentences.
        chart: title of the chart of its values against the epoch.
        bounds: whether its rows are bounds, rather than measures.
        searched: whether its rows are evaluated at the d of the paper's search, rather than at `prune_d`.
    """

    name: str
    title: str
    caption: str
    chart: str
    bounds: bool = True
    searched: bool = False


CONVENTIONS: Mapping[str, Convention] = {
    convention.name: convention
    for convention in (
        Convention(
            "paper",
            "As the paper's tables compute it",
            "Only Theorem 5.2 is a bound on an error; the other rows are squared complexities, each comparable only "
            "with the same row of another network.",
            "Bounds as the paper's tables compute them, natural log",
            searched=True,
        ),
        Convention(
            "leading",
            "Like for like",
            "Published bounds on the test error, with their hidden constants set to 1, so none of them is proved.",
            "Bounds on the test error, hidden constants 1, natural log",
        ),
        Convention(
            "rigorous",
            "No hidden constant",
            "Proved, each with the probability shown, for the network that the code describes; the test set's row is "
            "for the unpruned network. The rows computed from the training samples hold jointly with probability "
            "1 − delta.",
            "Bounds without hidden constants, natural log",
        ),
        Convention(
            "measure",
            "Measures proposed to correlate with generalization",
            "Not bounds: compare them between networks, not with an error.",
            "Measures proposed to correlate with generalization, natural log",
            bounds=False,
        ),
    )
}
"""The conventions, by name, in the order in which they are shown."""


@dataclass(frozen=True)
class Bound:
    """One row of the ladder, evaluated.

    Attributes:
        name: the bound's name; the same in every file, chart and table.
        convention: name of the convention that it follows.
        log_value: natural log of the bound.
        terms: the parts of its value, by name.
        holds_with: the probability with which it holds as computed; None if the source hides a constant.
        claimed: the probability that the source states; None if it states none.
        applies: whether the source's conditions hold for this network.
        reason: why it does not apply; empty if it does.
        vacuous: whether the bound is at least the error of guessing, 1 − 1/k; None for a row that does not bound an
            error.
        trivial: whether the bound is at least 1; None for a row that does not bound an error.
        rests_on: assumption of a guarantee that could not be checked and is in doubt; empty if there is none.
    """

    name: str
    convention: str
    log_value: float
    terms: Mapping[str, float] = field(default_factory=dict)
    holds_with: float | None = None
    claimed: float | None = None
    applies: bool = True
    reason: str = ""
    vacuous: bool | None = None
    trivial: bool | None = None
    rests_on: str = ""


@dataclass(frozen=True)
class Value:
    """The result of a row's function: its log value and, optionally, further attributes of a `Bound`."""

    log_value: float
    terms: Mapping[str, float] = field(default_factory=dict)
    claimed: float | None = None
    reason: str = ""
    holds_with: float | None = None
    rests_on: str = ""


@dataclass(frozen=True)
class Row:
    """One entry of the ladder's table.

    Attributes:
        name: the bound's name.
        convention: name of the convention that it follows.
        evaluate: its formula.
        reference: its source.
        label: its name in reports.
        risk: whether it is on the scale of the test error, so that 1 − 1/k is the error of guessing.
        needs: attributes of `Measured` without which the row is left out.
        structure: traits of the network without which the formula is not defined and the row is left out.
        assumes: further conditions for the row to apply, by their names in `Measured.broken`.
        share: share of δ of a row that holds with a probability; fixed, so that a new row does not change others.
    """

    name: str
    convention: str
    evaluate: Callable[[Measured], Value]
    label: str
    reference: str
    risk: bool = True
    needs: tuple[str, ...] = ()
    structure: tuple[str, ...] = ("chain", "linear")
    assumes: tuple[str, ...] = ()
    share: float = 0.0

    def meaningful(self, net: Measured) -> bool:
        """Whether the formula can be evaluated."""
        return not any(trait in net.broken for trait in self.structure) and all(
            getattr(net, need) is not None for need in self.needs
        )

    def bound(self, net: Measured) -> Bound:
        """The row of one network."""
        value = self.evaluate(net)
        unmet = [net.broken[name] for name in self.assumes if name in net.broken]
        reason = "; ".join(dict.fromkeys(filter(None, (*unmet, value.reason))))
        return Bound(
            name=self.name,
            convention=self.convention,
            log_value=value.log_value,
            terms=value.terms,
            holds_with=None if unmet else value.holds_with,
            claimed=value.claimed,
            applies=not reason,
            reason=reason,
            vacuous=value.log_value >= math.log1p(-1 / net.num_classes) if self.risk else None,
            trivial=value.log_value >= 0 if self.risk else None,
            rests_on=value.rests_on,
        )


def risk_bound(risk: float, log_complexity: float, **terms: float) -> Value:
    """R̂ + complexity, and what it is made of."""
    return Value(
        logsumexp([safe_log(risk), log_complexity]),
        {"empirical_risk": risk, "log_complexity": log_complexity, **terms},
    )


def minimize_over_margins(net: Measured, log_complexity: Callable[[Tensor], Tensor], **terms: float) -> Value:
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


def best_margin(net: Measured, log_numerator: float, **terms: float) -> Value:
    """Min over the positive training margins γ of R̂_γ + e^{log_numerator}/γ."""
    return minimize_over_margins(net, lambda log_gamma: log_numerator - log_gamma, **terms)


def noise_bound(net: Measured, log_frobenius: Sequence[float]) -> Value:
    """R̂_γ + sqrt(B² L² h ln(Lh) Π‖A_l‖₂² Σ_l f_l²/‖A_l‖₂² / (γ² n)), f_l the norms given, h the longest side."""
    assert net.unrolled is not None
    h, L = net.unrolled.width, net.unrolled.depth
    ranks = [2 * (f + rest) for f, rest in zip(log_frobenius, net.unrolled.log_others, strict=True)]
    square = math.log(h) + safe_log(math.log(L * h)) + logsumexp(ranks) - math.log(net.num_samples)
    return best_margin(net, net.log_reach_of(2) + math.log(L) + 0.5 * square)


def sqrt_over_n(net: Measured, total: float) -> float:
    """Ln sqrt(total / n)."""
    return 0.5 * (safe_log(total) - math.log(net.num_samples))


def over_gamma_squared(net: Measured, log_numerator: float) -> Value:
    """A squared complexity over γ²; +inf if γ, the smallest margin, is not positive."""
    return Value(math.inf if math.isinf(net.log_gamma) else log_numerator - 2 * net.log_gamma)
