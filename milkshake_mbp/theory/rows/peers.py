"""Peers of the paper: published bounds of fully connected networks, on the risk scale with hidden constants 1.

Each row is R̂_γ + complexity/γ at the positive training margin γ that minimises it. All of them leave out what every
source adds alike: the factor 2 of symmetrization, the term sqrt(ln(1/δ)/n), the unions over γ and over the norms, and,
where the source has one real output (all but Neyshabur et al. 2017, 2019 and Arora et al. 2018), the step to k
classes, a factor of at most k. D is the number of inputs, and max ‖x‖_p is measured or bounded through B.
"""

import math

from milkshake_mbp.theory.measured import Measured
from milkshake_mbp.theory.perturbation import logsumexp, safe_log
from milkshake_mbp.theory.rows.row import SEQUENCE, Row, Value, best_margin, noise_bound

__all__ = ["ROWS"]


def _peeled(net: Measured, log_capacity: float, rate: float = 0.5) -> Value:
    """R̂_γ + 2^{L−1}·capacity/(γ n^rate): a factor 2 for each function that the proof peels off."""
    assert net.unrolled is not None
    return best_margin(net, net.unrolled.activations * math.log(2) + log_capacity - rate * math.log(net.num_samples))


def _l1_factor(net: Measured) -> float:
    """Ln sqrt(4 ln(2D)), what ℓ1 classes of D inputs cost beside max‖x‖_∞."""
    assert net.unrolled is not None
    return 0.5 * math.log(4 * math.log(2 * net.unrolled.num_inputs))


def bartlett_2002(net: Measured) -> Value:
    """R̂_γ + 2^{L−1} Π‖A_l‖_{1,∞} max‖x‖_∞ sqrt(4 ln(2D))/(γ√n): p = 1, q = ∞ in Neyshabur et al. 2015, Thm. 1."""
    assert net.unrolled is not None
    return _peeled(net, math.fsum(net.unrolled.norms.log_l1_max) + (net.log_reach_of(math.inf) + _l1_factor(net)))


def neyshabur_2015_l3(net: Measured) -> Value:
    """R̂_γ + 2^{L−1} Π‖A_l‖_{3,1.5} max‖x‖_{1.5}/(γ n^{1/3}).

    Neyshabur et al. 2015, Thm. 1 with p = 3, q = 1.5: p* = 1.5 = q, so that H^{[1/p*−1/q]₊} = 1 and no width appears.
    For p ≥ 2 a linear class of ℓ_p norm 1 has Rademacher complexity at most max‖x‖_{p*} n^{−1/p}: not 1/√n. The theorem
    has a √2 more, which ℓ_{p*} does not need: its constant of type p* is 1, since coordinate by coordinate
    E|Σ_i ε_i x_i|^{p*} ≤ (Σ_i x_i²)^{p*/2} ≤ Σ_i |x_i|^{p*} (Ledoux and Talagrand, Probability in Banach Spaces, 1991,
    §9.2). Unit vectors with one nonzero each, in different places, attain it.
    """
    assert net.unrolled is not None
    return _peeled(net, math.fsum(net.unrolled.norms.log_l3_l1p5) + net.log_reach_of(1.5), rate=1 / 3)


def path_norm_l1(net: Measured) -> Value:
    """R̂_γ + 2^{L−1} φ_1 max‖x‖_∞ sqrt(4 ln(2D))/(γ√n), φ_1 the worst output's ℓ1 path norm.

    Neyshabur et al. 2015, Thm. 1, for the rescaling of the hidden units that has the least Π‖A_l‖_{1,∞}, which is φ_1.
    """
    assert net.unrolled is not None
    return _peeled(net, net.unrolled.log_path_l1 + (net.log_input_norm_of(math.inf) + _l1_factor(net)))


def path_norm_l2(net: Measured) -> Value:
    """R̂_γ + (2√H)^{L−1} φ_2 B/(γ√n), φ_2 the worst output's ℓ2 path norm, H the widest hidden layer.

    Average pooling, as a layer without a function behind it, costs another √H.

    Neyshabur et al. 2015, Thm. 1 with p = 2, q = ∞, for the rescaling of the hidden units with Π‖A_l‖_{2,∞} = φ_2. Its
    √2 is not needed, as for `neyshabur_2015_l3`, and left out as in the row `neyshabur_2015`: in a Hilbert space
    E‖Σ_i ε_i x_i‖₂ ≤ (Σ_i ‖x_i‖₂²)^{1/2}.
    """
    assert net.unrolled is not None
    chain = net.unrolled
    hidden = chain.norms.shapes[: chain.activations]
    widest = max((rows for rows, _ in hidden), default=chain.num_inputs if chain.averages else 1)
    widths = 0.5 * (chain.activations + chain.averages) * math.log(widest)
    return _peeled(net, widths + chain.log_path_l2 + net.log_input_norm)


def golowich_2018(net: Measured) -> Value:
    """R̂_γ + B Π‖A_l‖_F (sqrt(2 ln(2) L) + 1)/(γ√n) (Golowich et al. 2018, Thm. 1)."""
    assert net.unrolled is not None
    layers = net.unrolled.activations + 1
    capacity = net.log_reach_of(2) + math.fsum(net.unrolled.norms.log_frobenius) - 0.5 * math.log(net.num_samples)
    return best_margin(net, capacity + math.log(math.sqrt(2 * math.log(2) * layers) + 1))


def golowich_2018_l1(net: Measured) -> Value:
    """R̂_γ + 2 max‖x‖_∞ Π‖A_l‖_{1,∞} sqrt(L + 1 + ln D)/(γ√n) (Golowich et al. 2018, Thm. 2).

    The theorem's largest root mean square of an input coordinate is bounded by the largest coordinate.
    """
    assert net.unrolled is not None
    chain = net.unrolled
    capacity = net.log_reach_of(math.inf) + math.fsum(chain.norms.log_l1_max) - 0.5 * math.log(net.num_samples)
    layers = chain.activations + 1
    return best_margin(net, capacity + math.log(2) + 0.5 * math.log(layers + 1 + math.log(chain.num_inputs)))


def golowich_2018_depth_free(net: Measured) -> Value:
    """R̂_γ + (B/γ) Π‖A_l‖_F min{ln⁺(n)^{3/4} sqrt(ln⁺(Π‖A_l‖_F/‖A_l‖₂))/n^{1/4}, sqrt(L/n)}, ln⁺ = max(1, ln).

    Golowich et al. 2018, Cor. 1 for Frobenius norms; its Γ, a lower bound on Π‖A_l‖₂ fixed in advance, is taken as
    Π‖A_l‖₂ itself.
    """
    assert net.unrolled is not None
    norms, log_n = net.unrolled.norms, math.log(net.num_samples)
    excess = sum(f - s for f, s in zip(norms.log_frobenius, norms.log_spectral, strict=True) if s > -math.inf)
    depth_free = 0.75 * math.log(max(1.0, log_n)) + 0.5 * math.log(max(1.0, excess)) - 0.25 * log_n
    factor = min(depth_free, 0.5 * (math.log(net.unrolled.activations + 1) - log_n))
    return best_margin(net, net.log_reach_of(2) + math.fsum(norms.log_frobenius) + factor)


def neyshabur_2017_initial(net: Measured) -> Value:
    """R̂_γ + sqrt(B² L² h ln(Lh) Π‖A_l‖₂² Σ_l ‖A_l − M_l‖_F²/‖A_l‖₂² / (γ² n)), h the widest side.

    Neyshabur et al. 2017, Thm. 1, with the PAC-Bayes prior around the initial weights M_l instead of 0, the form in
    which Neyshabur et al. 2019 and Jiang et al. 2020 quote it for comparison. The theorem proves it for M_l = 0: there
    one may assume equal spectral norms; here the prior's scale per layer costs a further union, left out.
    """
    assert net.unrolled is not None and net.unrolled.initial is not None
    return noise_bound(net, net.unrolled.initial.log_frobenius)


def neyshabur_2019(net: Measured) -> Value:
    """R̂_γ + √k ‖A_2‖_F (‖A_1 − M_1‖_F + ‖M_1‖₂) B/(γ√n) + sqrt(h/n), h hidden units; two layers only.

    Neyshabur et al. 2019, Thm. 2, in its second form, with the inputs' root mean square norm bounded by B; k outputs.
    """
    assert net.initial is not None
    if net.depth != 2:
        return Value(math.inf, reason=f"Theorem 2 is for two layers, and this network has {net.depth}")
    (hidden, _), (outputs, _) = net.norms.shapes
    first = logsumexp([net.initial.log_frobenius[0], net.initial.log_first_initial])
    capacity = 0.5 * math.log(outputs / net.num_samples) + net.norms.log_frobenius[1] + first + net.log_reach
    log_width = 0.5 * math.log(hidden / net.num_samples)
    value = best_margin(net, capacity, log_width_term=log_width)
    return Value(logsumexp([value.log_value, log_width]), value.terms, reason=value.reason)


def arora_2018(net: Measured) -> Value:
    """R̂_γ + sqrt(c² L² max‖f(x)‖² Σ_l 1/(μ_l² μ_{l→}²) / (γ² n)) (Arora et al. 2018, Thm. 4.1).

    It bounds the error of a compressed network, made by random projections, not of the network itself, and needs the
    interlayer smoothness ρ_δ ≥ 3L. The cushions μ_l and μ_{l→}, smoothness and max‖f(x)‖ are those over the samples
    measured: over all n the minima may be smaller.
    """
    assert net.cushions is not None
    seen, needed = net.cushions, 3 * net.depth
    terms = {
        "layer_cushion": min(seen.layer),
        "interlayer_cushion": min(seen.interlayer),
        "contraction": seen.contraction,
        "smoothness": seen.smoothness,
        "output_norm": seen.output_norm,
        "samples_measured": seen.num_samples,
    }
    if math.isinf(seen.contraction) or not all(cushion > 0 for cushion in (*seen.layer, *seen.interlayer)):
        return Value(math.inf, terms, reason="a cushion is 0, or a layer's output is 0 for some sample")
    cushions = [-2 * (math.log(a) + math.log(b)) for a, b in zip(seen.layer, seen.interlayer, strict=True)]
    scale = safe_log(seen.contraction) + math.log(net.depth) + safe_log(seen.output_norm)
    value = best_margin(net, scale + 0.5 * (logsumexp(cushions) - math.log(net.num_samples)), **terms)
    smooth = seen.smoothness >= needed
    broken = "" if smooth else f"Theorem 4.1 needs smoothness ≥ 3L = {needed}, measured {seen.smoothness:.3g}"
    return Value(value.log_value, value.terms, reason="; ".join(filter(None, (broken, value.reason))))


_PLAIN = ("bias_free", "zero_preserving")
_HOMOGENEOUS = (*_PLAIN, "homogeneous")
_PEELED = (*_HOMOGENEOUS, "entrywise")

ROWS = (
    Row(
        "bartlett_2002",
        "leading",
        bartlett_2002,
        "Bartlett 2002, ℓ1,∞",
        "Bartlett and Mendelson 2002, as in Neyshabur et al. 2015, Thm. 1",
        structure=SEQUENCE,
        assumes=_PEELED,
    ),
    Row(
        "neyshabur_2015_l3",
        "leading",
        neyshabur_2015_l3,
        "Neyshabur 2015, ℓ3,1.5",
        "Neyshabur et al. 2015, Thm. 1",
        structure=SEQUENCE,
        assumes=_PEELED,
    ),
    Row(
        "path_norm_l1",
        "leading",
        path_norm_l1,
        "ℓ1 path norm",
        "Neyshabur et al. 2015, Thm. 1, path regularizer",
        structure=SEQUENCE,
        assumes=_PEELED,
    ),
    Row(
        "path_norm_l2",
        "leading",
        path_norm_l2,
        "ℓ2 path norm",
        "Neyshabur et al. 2015, Thm. 1, path regularizer",
        structure=SEQUENCE,
        assumes=_PEELED,
    ),
    Row(
        "golowich_2018",
        "leading",
        golowich_2018,
        "Golowich 2018",
        "Golowich et al. 2018, Thm. 1",
        structure=SEQUENCE,
        assumes=_PEELED,
    ),
    Row(
        "golowich_2018_l1",
        "leading",
        golowich_2018_l1,
        "Golowich 2018, ℓ1,∞",
        "Golowich et al. 2018, Thm. 2",
        structure=SEQUENCE,
        assumes=(*_PLAIN, "entrywise"),
    ),
    Row(
        "golowich_2018_depth_free",
        "leading",
        golowich_2018_depth_free,
        "Golowich 2018, depth-free",
        "Golowich et al. 2018, Cor. 1",
        structure=SEQUENCE,
        assumes=_PEELED,
    ),
    Row(
        "neyshabur_2017_initial",
        "leading",
        neyshabur_2017_initial,
        "Neyshabur 2017, from initialization",
        "Neyshabur et al. 2017, Thm. 1, with the prior around the initial weights",
        needs=("initial",),
        structure=SEQUENCE,
        assumes=_HOMOGENEOUS,
    ),
    Row(
        "neyshabur_2019",
        "leading",
        neyshabur_2019,
        "Neyshabur 2019, two layers",
        "Neyshabur et al. 2019, Thm. 2",
        needs=("initial",),
        assumes=_HOMOGENEOUS,
    ),
    Row(
        "arora_2018",
        "leading",
        arora_2018,
        "Arora 2018",
        "Arora et al. 2018, Thm. 4.1",
        needs=("cushions",),
        assumes=_PLAIN,
    ),
)
