"""The `measure` convention: quantities proposed to correlate with generalization; none of them bounds a risk.

They are those of Jiang, Neyshabur, Mobahi, Krishnan and Bengio, Fantastic Generalization Measures and Where to Find
Them, ICLR 2020, that a fully connected network has, under the names published there, as natural logs. Their γ is the
10th percentile of the training margins: the least margin that a tenth of the samples do not exceed. Biases count as
parameters and enter no norm. The reference is the paper's equation.
"""

import math
from collections.abc import Callable, Sequence

from milkshake_mbp.theory.measured import Measured
from milkshake_mbp.theory.perturbation import logsumexp, safe_log
from milkshake_mbp.theory.rows.row import Row, Value

__all__ = ["ROWS"]


def _over_margin(net: Measured, log_value: float, power: float = 2.0) -> Value:
    """e^{log_value}/γ^power; +inf if γ is not positive."""
    gamma = float(net.margins[-(-len(net.margins) // 10) - 1])
    if not gamma > 0:
        reason = "the 10th percentile of the training margins is not positive"
        return Value(math.inf, {"gamma": gamma}, reason=reason)
    return Value(log_value - power * math.log(gamma), {"gamma": gamma})


def _square(log_norms: Sequence[float]) -> float:
    """Ln Σ v², given the logs of v."""
    return logsumexp([2 * norm for norm in log_norms])


def _product(log_norms: Sequence[float]) -> float:
    """Ln Π v², given the logs of v."""
    return 2 * math.fsum(log_norms)


def params(net: Measured) -> Value:
    """PARAMS: the number of weights and biases."""
    return Value(math.log(sum(net.sizes) + net.plain))


def inverse_margin(net: Measured) -> Value:
    """INVERSE-MARGIN: 1/γ²."""
    return _over_margin(net, 0.0)


def spec_init_main(net: Measured) -> Value:
    """SPEC-INIT-MAIN: Π‖A_l‖₂² Σ_l ‖A_l − M_l‖_F²/‖A_l‖₂² / γ²."""
    assert net.initial is not None
    moved = [m + rest for m, rest in zip(net.initial.log_frobenius, net.log_others, strict=True)]
    return _over_margin(net, _square(moved))


def spec_orig_main(net: Measured) -> Value:
    """SPEC-ORIG-MAIN: Π‖A_l‖₂² Σ_l ‖A_l‖_F²/‖A_l‖₂² / γ²."""
    return _over_margin(net, logsumexp(net.log_ranks))


def prod_of_spec_over_margin(net: Measured) -> Value:
    """PROD-OF-SPEC/MARGIN: Π‖A_l‖₂²/γ²."""
    return _over_margin(net, _product(net.norms.log_spectral))


def prod_of_spec(net: Measured) -> Value:
    """PROD-OF-SPEC: Π‖A_l‖₂²."""
    return Value(_product(net.norms.log_spectral))


def fro_over_spec(net: Measured) -> Value:
    """FRO/SPEC: Σ_l ‖A_l‖_F²/‖A_l‖₂², a zero layer adding 0."""
    norms = zip(net.norms.log_frobenius, net.norms.log_spectral, strict=True)
    return Value(_square([f - s for f, s in norms if s > -math.inf]))


def sum_of_spec_over_margin(net: Measured) -> Value:
    """SUM-OF-SPEC/MARGIN: L (Π‖A_l‖₂²/γ²)^{1/L}, the sum once the layers are rescaled to have equal norms."""
    return _over_margin(net, sum_of_spec(net).log_value, 2 / net.depth)


def sum_of_spec(net: Measured) -> Value:
    """SUM-OF-SPEC: L (Π‖A_l‖₂²)^{1/L}."""
    return Value(math.log(net.depth) + _product(net.norms.log_spectral) / net.depth)


def prod_of_fro_over_margin(net: Measured) -> Value:
    """PROD-OF-FRO/MARGIN: Π‖A_l‖_F²/γ²."""
    return _over_margin(net, _product(net.norms.log_frobenius))


def prod_of_fro(net: Measured) -> Value:
    """PROD-OF-FRO: Π‖A_l‖_F²."""
    return Value(_product(net.norms.log_frobenius))


def sum_of_fro_over_margin(net: Measured) -> Value:
    """SUM-OF-FRO/MARGIN: L (Π‖A_l‖_F²/γ²)^{1/L}, the sum once the layers are rescaled to have equal norms."""
    return _over_margin(net, sum_of_fro(net).log_value, 2 / net.depth)


def sum_of_fro(net: Measured) -> Value:
    """SUM-OF-FRO: L (Π‖A_l‖_F²)^{1/L}."""
    return Value(math.log(net.depth) + _product(net.norms.log_frobenius) / net.depth)


def fro_dist(net: Measured) -> Value:
    """FRO-DIST: Σ_l ‖A_l − M_l‖_F²."""
    assert net.initial is not None
    return Value(_square(net.initial.log_frobenius))


def dist_spec_init(net: Measured) -> Value:
    """DIST-SPEC-INIT: Σ_l ‖A_l − M_l‖₂²."""
    assert net.initial is not None
    return Value(_square(net.initial.log_spectral))


def param_norm(net: Measured) -> Value:
    """PARAM-NORM: Σ_l ‖A_l‖_F²."""
    return Value(_square(net.norms.log_frobenius))


def path_norm_over_margin(net: Measured) -> Value:
    """PATH-NORM/MARGIN: Σ_k f_{w²}(1)[k]/γ²."""
    return _over_margin(net, path_norm(net).log_value)


def path_norm(net: Measured) -> Value:
    """PATH-NORM: Σ_k f_{w²}(1)[k], the outputs of the network with squared weights on all ones: Σ_paths Πw²."""
    return Value(_square(net.norms.log_paths_l2))


def _pacbayes(net: Measured, log_distance: float) -> Value:
    """Distance/(4σ²) + ln(n/σ) + 10: the source's stand-in 10 for its Õ(1)."""
    assert net.flatness is not None
    sigma = net.flatness.sigma
    terms = {"sigma": sigma, "deviation": net.flatness.deviation}
    if not sigma > 0:
        return Value(math.inf, terms, reason="the weights tolerate no noise")
    rest = math.log(net.num_samples) - math.log(sigma) + 10
    return Value(logsumexp([log_distance - math.log(4) - 2 * math.log(sigma), safe_log(rest)]), terms)


def pacbayes_init(net: Measured) -> Value:
    """PACBAYES-INIT: Σ_l ‖A_l − M_l‖_F²/(4σ²) + ln(n/σ) + 10, σ the noise tolerated; the last two together ≥ 0."""
    return _pacbayes(net, fro_dist(net).log_value)


def pacbayes_orig(net: Measured) -> Value:
    """PACBAYES-ORIG: Σ_l ‖A_l‖_F²/(4σ²) + ln(n/σ) + 10, σ the noise tolerated; the last two together ≥ 0."""
    return _pacbayes(net, param_norm(net).log_value)


def pacbayes_flatness(net: Measured) -> Value:
    """PACBAYES-FLATNESS: 1/σ², σ the noise tolerated."""
    assert net.flatness is not None
    return Value(-2 * safe_log(net.flatness.sigma), {"sigma": net.flatness.sigma})


_LINEAR, _CHAIN = ("linear",), ("chain", "linear")


def _row(
    evaluate: Callable[[Measured], Value],
    label: str,
    equation: int,
    needs: tuple[str, ...] = (),
    structure: tuple[str, ...] = (),
) -> Row:
    reference = f"Jiang et al. 2020, eq. {equation}"
    return Row(evaluate.__name__, "measure", evaluate, label, reference, risk=False, needs=needs, structure=structure)


ROWS = (
    _row(params, "Parameters", 20),
    _row(inverse_margin, "Inverse margin", 22),
    _row(spec_init_main, "Spectral, distance from initialization", 29, ("initial",), _LINEAR),
    _row(spec_orig_main, "Spectral, distance from zero", 30, structure=_LINEAR),
    _row(prod_of_spec_over_margin, "Product of spectral norms over margin", 31, structure=_LINEAR),
    _row(prod_of_spec, "Product of spectral norms", 32, structure=_LINEAR),
    _row(fro_over_spec, "Frobenius over spectral", 33, structure=_LINEAR),
    _row(sum_of_spec_over_margin, "Sum of spectral norms over margin", 34, structure=_LINEAR),
    _row(sum_of_spec, "Sum of spectral norms", 35, structure=_LINEAR),
    _row(prod_of_fro_over_margin, "Product of Frobenius norms over margin", 36),
    _row(prod_of_fro, "Product of Frobenius norms", 37),
    _row(sum_of_fro_over_margin, "Sum of Frobenius norms over margin", 38),
    _row(sum_of_fro, "Sum of Frobenius norms", 39),
    _row(fro_dist, "Frobenius distance from initialization", 40, ("initial",)),
    _row(dist_spec_init, "Spectral distance from initialization", 41, ("initial",), _LINEAR),
    _row(param_norm, "Parameter norm", 42),
    _row(path_norm_over_margin, "Path norm over margin", 43, structure=_CHAIN),
    _row(path_norm, "Path norm", 44, structure=_CHAIN),
    _row(pacbayes_init, "PAC-Bayes, from initialization", 48, ("initial", "flatness")),
    _row(pacbayes_orig, "PAC-Bayes, from zero", 49, ("flatness",)),
    _row(pacbayes_flatness, "PAC-Bayes flatness", 53, ("flatness",)),
)
