"""How far pruning and rounding move a network's output (paper §4, App. B and C)."""

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from milkshake_mbp.theory.norms import frobenius_norm, spectral_norm, spectral_norm_estimate
from milkshake_mbp.theory.pruning import MaskDraw, StrengthSearch, difference_moments, search_strength

__all__ = [
    "NeededMargin",
    "affordable_strength",
    "default_step",
    "discretization_error",
    "discretize",
    "expected_difference_norm",
    "largest_step",
    "leave_one_out",
    "log_output_perturbation",
    "log_telescoping_perturbation",
    "logsumexp",
    "output_perturbation",
    "perturbation_condition",
    "safe_exp",
    "safe_log",
    "subgaussian_factor",
]

_SPARSE_UP_TO = 0.01  # 7% of a Gaussian layer


def logsumexp(values: Sequence[float]) -> float:
    """Ln Σ exp(v); −inf for no values."""
    top = max(values, default=-math.inf)
    return top if math.isinf(top) else top + math.log(math.fsum(math.exp(v - top) for v in values))


def leave_one_out(values: Sequence[float]) -> list[float]:
    """Σ_{i≠l} v_i for every l: the log of a product without its l-th factor, which may be 0."""
    return [math.fsum(values[:index]) + math.fsum(values[index + 1 :]) for index in range(len(values))]


def safe_log(value: float) -> float:
    """Ln v for v ≥ 0, with ln 0 = −inf."""
    return math.log(value) if value > 0 else -math.inf


def safe_exp(log_value: float) -> float:
    """e^v, infinite on overflow."""
    return math.exp(log_value) if log_value < 709 else math.inf


def expected_difference_norm(shape: tuple[int, int], d: float, variance: float, constant: float = 1.0) -> float:
    """Γ_l = C[√E Δ² (√d_in + √d_out) + (d_in d_out E Δ⁴)^{1/4}], which bounds E‖Â − A‖₂ (Lemma 4.2; B.1 with E16).

    Args:
        shape: (out, in).
        d: pruning strength, ≥ 0.
        variance: Ψ of the layer.
        constant: Latala's universal constant C, which is unknown; 1 held in every simulation tried.

    Raises:
        ValueError: d is negative or NaN.
    """
    # Γ is proportional to √Ψ; E Δ⁴ of a tiny Ψ is below the least float where Γ is not.
    second, fourth = difference_moments(d, 1.0)
    rows, columns = shape
    of_unit = math.sqrt(second) * (math.sqrt(rows) + math.sqrt(columns)) + (rows * columns * fourth) ** 0.25
    return constant * math.sqrt(variance) * of_unit


def subgaussian_factor(
    shape: tuple[int, int], num_samples: int, failure: float = 0.01, a: float = 1.0, b: float = 1.0
) -> float:
    """κ_l = min(1, t_l √d_out) with t_l = sqrt(ln(a n/failure)/(b d_in)) where d_out < d_in, else 1 (Lemma C.1).

    Used in the `paper` convention only: a = b = 1 fails even for the uniform distribution on the sphere, and the lemma
    misses two union bounds (erratum E15).

    Args:
        shape: (out, in) of the layer.
        num_samples: n.
        failure: probability that some sample violates Condition C.1.
        a: constant of Condition C.1.
        b: constant of Condition C.1.
    """
    rows, columns = shape
    if rows >= columns:
        return 1.0
    return min(1.0, math.sqrt(max(0.0, math.log(a * num_samples / failure)) / (b * columns) * rows))


def log_output_perturbation(
    log_spectral_norms: Sequence[float],
    log_difference_norms: Sequence[float],
    log_input_norm: float,
    *,
    lipschitz: float = 1.0,
    factors: Sequence[float] | None = None,
) -> float:
    """Natural log of `output_perturbation`, from logs of the norms, so that no product can overflow."""
    # L − 1 activations; the L factors that the lemma prints are a bound only from 1 on (erratum E32).
    activations = len(log_spectral_norms) - (lipschitz < 1)
    scale = 1.0 + log_input_norm + activations * math.log(lipschitz) + sum(safe_log(factor) for factor in factors or ())
    others = leave_one_out(log_spectral_norms)
    return scale + logsumexp([u + rest for u, rest in zip(log_difference_norms, others, strict=True)])


def output_perturbation(
    spectral_norms: Sequence[float],
    difference_norms: Sequence[float],
    input_norm: float,
    *,
    lipschitz: float = 1.0,
    factors: Sequence[float] | None = None,
) -> float:
    """e·B·Π_l(lip·κ_l·‖A_l‖₂)·Σ_l ‖U_l‖₂/‖A_l‖₂ ≥ ‖x̂ − x‖₂ (Lemmas 4.3 and B.2, with B for d₁⁰: erratum E4).

    For lip < 1 there is one factor less, as there are activations (erratum E32). Valid only where
    `perturbation_condition` holds for every layer. Networks without biases.

    Args:
        spectral_norms: ‖A_l‖₂ per layer, in forward order.
        difference_norms: ‖U_l‖₂ per layer.
        input_norm: B, the largest ‖x‖₂.
        lipschitz: Lipschitz constant of the activation, with φ(0) = 0.
        factors: κ_l per layer; by default 1.

    Returns:
        The bound in units of the network's output, infinite on overflow (`log_output_perturbation` has the log).
    """
    log_value = log_output_perturbation(
        [safe_log(float(norm)) for norm in spectral_norms],
        [safe_log(float(norm)) for norm in difference_norms],
        safe_log(float(input_norm)),
        lipschitz=lipschitz,
        factors=factors,
    )
    return safe_exp(log_value)


def perturbation_condition(log_spectral_norms: Sequence[float], log_difference_norms: Sequence[float]) -> list[bool]:
    """Per layer, whether ‖U_l‖₂ ≤ ‖A_l‖₂/L, which Lemma B.2 needs for every layer (erratum E14).

    Args:
        log_spectral_norms: ln ‖A_l‖₂ per layer.
        log_difference_norms: ln ‖U_l‖₂ per layer.
    """
    log_depth = math.log(len(log_spectral_norms))
    return [u <= s - log_depth for u, s in zip(log_difference_norms, log_spectral_norms, strict=True)]


def log_telescoping_perturbation(
    log_spectral_norms: Sequence[float],
    log_perturbed_norms: Sequence[float],
    log_difference_norms: Sequence[float],
    log_input_norm: float,
    *,
    lipschitz: float = 1.0,
) -> float:
    """Ln of B·Σ_l (Π_{i>l}‖Â_i‖₂)·‖U_l‖₂·(Π_{i<l}‖A_i‖₂)·lip^{L−1} ≥ ‖x̂ − x‖₂, which needs no condition.

    Replace the layers one at a time, beginning at the input: the l-th replacement moves the layer's output by at most
    ‖U_l‖₂ times the norm of its input, and the following layers multiply this by at most their norms.

    Args:
        log_spectral_norms: ln ‖A_l‖₂ per layer, in forward order.
        log_perturbed_norms: ln ‖Â_l‖₂, or logs of upper bounds on them.
        log_difference_norms: ln ‖U_l‖₂.
        log_input_norm: ln B.
        lipschitz: Lipschitz constant of the activation, with φ(0) = 0.
    """
    depth = len(log_spectral_norms)
    terms = [
        sum(log_spectral_norms[:layer]) + log_difference_norms[layer] + sum(log_perturbed_norms[layer + 1 :])
        for layer in range(depth)
        if log_difference_norms[layer] > -math.inf
    ]
    return log_input_norm + (depth - 1) * math.log(lipschitz) + logsumexp(terms)


def discretize(weight: Tensor, step: float) -> Tensor:
    """Every entry at its nearest multiple of ρ, halves to the even multiple (paper §4.2).

    Args:
        weight: any shape and floating dtype.
        step: ρ > 0.

    Returns:
        The weight's shape and dtype, but float32 for a half-precision weight, which cannot hold the grid.

    Raises:
        ValueError: the step is not positive and finite.
    """
    if not 0 < step < math.inf:
        raise ValueError(f"the discretization step must be positive and finite, got {step}")
    grid = torch.round(weight.double() / step) * step
    return grid.to(torch.promote_types(weight.dtype, torch.float32))


def default_step(weight: Tensor) -> float:
    """ρ_l = max|A_l|·2⁻⁸, 1 for a zero layer; a float32 where that has the range, which a code holds in 32 bits."""
    largest = weight.detach().abs().amax()
    single = float(largest.float())
    return (single if 2.0**-118 <= single < math.inf else float(largest)) * 2.0**-8 or 1.0


def largest_step(spectral_norm: float, difference_norm: float, depth: int, unit_error: float) -> float:
    """The largest ρ_l with ‖Ã_l − A_l‖₂ ≤ ‖A_l‖₂/L: (‖A_l‖₂/L − ‖Δ_l‖₂)/E_l, E_l·ρ the rounding error (Lemma 4.4).

    Lemma 4.4 has ε_lΓ_l for ‖Δ_l‖₂ and J_l for E_l (erratum E6). If pruning alone violates the condition, no ρ_l > 0
    is admissible and the lemma does not apply (erratum E14).

    Args:
        spectral_norm: ‖A_l‖₂.
        difference_norm: ‖Δ_l‖₂, or ε_lΓ_l.
        depth: L.
        unit_error: E_l, `discretization_error` at ρ = 1.

    Returns:
        The step; not positive if there is none.
    """
    room = spectral_norm / depth - difference_norm
    return room / unit_error if unit_error else math.copysign(math.inf, room)


def discretization_error(step: float, nonzeros: int, column_max: int, row_max: int) -> float:
    """(ρ/2)·min(√J, √(j_r j_c)) ≥ ‖Ã − Â‖₂: each entry moves by at most ρ/2 (erratum E6).

    The error lives on the support of the matrix *before* rounding: an entry that rounds to zero moves too.

    Args:
        step: ρ.
        nonzeros: J, the nonzeros before rounding.
        column_max: j_r, the most nonzeros in a column.
        row_max: j_c, the most nonzeros in a row.
    """
    return step / 2 * math.sqrt(min(nonzeros, row_max * column_max))


class NeededMargin:
    """needed(d) of the `paper` convention, for one fixed draw of Algorithm 1's randomness (spec §4).

    needed(d) = e·B·Π_l(κ_l‖A_l‖₂)·Σ_l ‖A_l − Â_l(d)‖₂/‖A_l‖₂, the diagonal pruned like everything else.

    Args:
        weights: (out, in) tensors in forward order.
        draw: draw of their masks.
        log_spectral_norms: ln ‖A_l‖₂.
        log_input_norm: ln B.
        factors: κ_l.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        draw: MaskDraw,
        log_spectral_norms: Sequence[float],
        log_input_norm: float,
        factors: Sequence[float],
    ) -> None:
        self._weights = [weight.detach().double() for weight in weights]
        self._log_spectral_norms = log_spectral_norms
        self._log_input_norm = log_input_norm
        self._factors = factors
        self.draw = draw

    def guess(self, log_margin: float) -> float:
        """The root that the Gaussian prediction ‖Δ_l‖₂ ≈ √EΔ²(√d_out + √d_in) gives (Lemma 4.1); positive, finite."""
        scales = [
            0.5 * safe_log(float(weight.var(correction=0))) + math.log(sum(map(math.sqrt, weight.shape)))
            for weight in self._weights
        ]
        at_one = log_output_perturbation(self._log_spectral_norms, scales, self._log_input_norm, factors=self._factors)
        ratio = math.exp(min(4 / 3 * (log_margin - at_one), -1e-3))
        return max(2 * ratio / (1 - ratio), 1e-300)

    def difference(self, layer: int, d: float) -> Tensor:
        """A_l − Â_l(d), (out, in) float64; sparse at a strength that prunes little."""
        weight, threshold = self._weights[layer], self.draw.thresholds[layer]
        if d > _SPARSE_UP_TO:
            return torch.where(threshold < d, weight, 0.0)
        indices, values, thresholds = self._first_pruned[layer]
        pruned = (thresholds < d).nonzero().squeeze(1)
        return torch.sparse_coo_tensor(
            indices[:, pruned], values[pruned], weight.shape, is_coalesced=True, check_invariants=False
        )

    @cached_property
    def _first_pruned(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Indices, values and thresholds of the entries pruned at `_SPARSE_UP_TO`, so that a search reads no others."""
        found = []
        for weight, threshold in zip(self._weights, self.draw.thresholds, strict=True):
            rows, columns = torch.nonzero(threshold < _SPARSE_UP_TO, as_tuple=True)
            found.append((torch.stack([rows, columns]), weight[rows, columns], threshold[rows, columns]))
        return found

    def difference_norms(self, d: float, norm: Callable[[Tensor], Tensor] = spectral_norm) -> list[float]:
        """‖A_l − Â_l(d)‖₂ per layer."""
        return [float(norm(self.difference(layer, d))) for layer in range(len(self._weights))]

    def log_needed(self, d: float, norm: Callable[[Tensor], Tensor] = spectral_norm) -> float:
        """Ln needed(d); −inf where nothing is pruned. An uncertified `norm` makes it an estimate."""
        norms = [safe_log(value) for value in self.difference_norms(d, norm)]
        return log_output_perturbation(self._log_spectral_norms, norms, self._log_input_norm, factors=self._factors)


def affordable_strength(
    needed: NeededMargin, margin: float, *, largest: float = 10.0, tolerance: float = 0.01
) -> StrengthSearch:
    """The largest d ≤ `largest`, to a relative tolerance, whose certified needed margin does not exceed the margin.

    This is the paper's search (§7, spec §4), but for a single draw of the masks instead of a new one at every step.
    Estimates of the norms narrow the bracket; certified norms decide.

    Args:
        needed: the network's needed margin.
        margin: the smallest training margin γ.
        largest: the end of the range searched.
        tolerance: relative width of the final bracket.

    Returns:
        The search's outcome; d = 0 if γ ≤ 0.
    """

    def estimate(d: float) -> float:
        if d == largest and (floor := needed.log_needed(d, _norm_floor)) > math.log(margin):
            return floor
        if d > _SPARSE_UP_TO:  # where needed(d) flattens, a small error in it is a large one in d
            return needed.log_needed(d)
        # Estimates come from below; what they usually miss is added back.
        return needed.log_needed(d, spectral_norm_estimate) + 2e-3

    guess = needed.guess(math.log(margin)) if margin > 0 else 1.0
    found = search_strength(
        estimate, margin, smallest=needed.draw.smallest, start=guess, largest=largest, tolerance=tolerance
    )
    if not found.d:
        return found
    d, evaluations = found.d, found.evaluations + 1
    while (log_needed := needed.log_needed(d)) > found.log_margin:
        d, evaluations = d * (1 - tolerance / 2), evaluations + 1
    return StrengthSearch(d, log_needed, found.log_margin, evaluations)


def _norm_floor(matrix: Tensor) -> Tensor:
    """‖U‖_F/√D ≤ ‖U‖₂, D the shorter side: enough to exclude a strength that is far too large."""
    return frobenius_norm(matrix) / math.sqrt(min(matrix.shape))
