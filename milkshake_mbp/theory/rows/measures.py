"""The `measure` convention: quantities proposed to correlate with generalization; none of them bounds a risk.

They are those of Jiang, Neyshabur, Mobahi, Krishnan and Bengio, Fantastic Generalization Measures and Where to Find
Them, ICLR 2020, that need no search over the weights' surroundings but for σ, under the names published there, as
natural logs. Their γ is the 10th percentile of the training margins: the least margin that a tenth of the samples do
not exceed. Biases count as parameters and enter no norm but the path norm. The gain of a normalization behind a layer
is part of its kernel. The reference is the paper's equation.

A convolution's ‖A_l‖₂ is that of its kernel as an (out, in·kh·kw) matrix, as public code has it, which is below that of
its map; with suffix `_fft` it is that of the kernel's Fourier symbol on the grid of the network's input, strides
ignored (Dziugaite et al. 2020's code); with `_operator` the certified upper end of its map's, and ‖A_l‖_F is its map's.
"""

import math
from collections.abc import Callable, Sequence

from milkshake_mbp.theory.measured import LayerScales, Measured
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


def _spec_init_main(net: Measured, scales: LayerScales) -> Value:
    """SPEC-INIT-MAIN: Π‖A_l‖₂² Σ_l ‖A_l − M_l‖_F²/‖A_l‖₂² / γ²."""
    moved = [m + rest for m, rest in zip(scales.log_distance_frobenius, scales.log_others, strict=True)]
    return _over_margin(net, _square(moved))


def _spec_orig_main(net: Measured, scales: LayerScales) -> Value:
    """SPEC-ORIG-MAIN: Π‖A_l‖₂² Σ_l ‖A_l‖_F²/‖A_l‖₂² / γ²."""
    ranks = [f + rest for f, rest in zip(scales.log_frobenius, scales.log_others, strict=True)]
    return _over_margin(net, _square(ranks))


def _prod_of_spec_over_margin(net: Measured, scales: LayerScales) -> Value:
    """PROD-OF-SPEC/MARGIN: Π‖A_l‖₂²/γ²."""
    return _over_margin(net, _product(scales.log_spectral))


def _prod_of_spec(net: Measured, scales: LayerScales) -> Value:
    """PROD-OF-SPEC: Π‖A_l‖₂²."""
    return Value(_product(scales.log_spectral))


def _fro_over_spec(net: Measured, scales: LayerScales) -> Value:
    """FRO/SPEC: Σ_l ‖A_l‖_F²/‖A_l‖₂², a zero layer adding 0."""
    norms = zip(scales.log_frobenius, scales.log_spectral, strict=True)
    return Value(_square([f - s for f, s in norms if s > -math.inf]))


def _sum_of_spec_over_margin(net: Measured, scales: LayerScales) -> Value:
    """SUM-OF-SPEC/MARGIN: L (Π‖A_l‖₂²/γ²)^{1/L}, the sum once the layers are rescaled to have equal norms."""
    return _over_margin(net, _sum_of_spec(net, scales).log_value, 2 / len(scales.log_spectral))


def _sum_of_spec(net: Measured, scales: LayerScales) -> Value:
    """SUM-OF-SPEC: L (Π‖A_l‖₂²)^{1/L}."""
    depth = len(scales.log_spectral)
    return Value(math.log(depth) + _product(scales.log_spectral) / depth)


def _dist_spec_init(net: Measured, scales: LayerScales) -> Value:
    """DIST-SPEC-INIT: Σ_l ‖A_l − M_l‖₂²."""
    return Value(_square(scales.log_distance_spectral))


def prod_of_fro_over_margin(net: Measured) -> Value:
    """PROD-OF-FRO/MARGIN: Π‖A_l‖_F²/γ²."""
    return _over_margin(net, _product(net.kernel_scales.log_frobenius))


def prod_of_fro(net: Measured) -> Value:
    """PROD-OF-FRO: Π‖A_l‖_F²."""
    return Value(_product(net.kernel_scales.log_frobenius))


def sum_of_fro_over_margin(net: Measured) -> Value:
    """SUM-OF-FRO/MARGIN: L (Π‖A_l‖_F²/γ²)^{1/L}, the sum once the layers are rescaled to have equal norms."""
    return _over_margin(net, sum_of_fro(net).log_value, 2 / net.depth)


def sum_of_fro(net: Measured) -> Value:
    """SUM-OF-FRO: L (Π‖A_l‖_F²)^{1/L}."""
    return Value(math.log(net.depth) + _product(net.kernel_scales.log_frobenius) / net.depth)


def fro_dist(net: Measured) -> Value:
    """FRO-DIST: Σ_l ‖A_l − M_l‖_F²."""
    return Value(_square(net.kernel_scales.log_distance_frobenius))


def param_norm(net: Measured) -> Value:
    """PARAM-NORM: Σ_l ‖A_l‖_F²."""
    return Value(_square(net.kernel_scales.log_frobenius))


def l2(net: Measured) -> Value:
    """L2: sqrt(Σ_l ‖A_l‖_F²)."""
    return Value(param_norm(net).log_value / 2)


def l2_dist(net: Measured) -> Value:
    """L2-DIST: sqrt(Σ_l ‖A_l − M_l‖_F²)."""
    return Value(fro_dist(net).log_value / 2)


def path_norm_over_margin(net: Measured) -> Value:
    """PATH-NORM/MARGIN: Σ_k f_{w²}(1)[k]/γ²."""
    return _over_margin(net, path_norm(net).log_value)


def path_norm(net: Measured) -> Value:
    """PATH-NORM: Σ_k f_{w²}(1)[k], the outputs of the network with squared weights and biases on all ones.

    Σ_paths Πw² for layers and ReLUs; pooling is as it is (`log_squared_network`).
    """
    assert net.log_squared_network is not None
    return Value(net.log_squared_network)


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


def _pacbayes_magnitude(net: Measured, complexity: float | None) -> Value:
    """¼ Σ_i ln(…) + ln(n/σ') + 10, the source's stand-in 10 for its Õ(1)."""
    assert net.magnitudes is not None and complexity is not None
    sigma = net.magnitudes.sigma
    value = complexity + math.log(net.num_samples) - safe_log(sigma) + 10
    return Value(safe_log(value) if value > 0 else -math.inf, {"sigma": sigma, "floor": net.magnitudes.floor})


def pacbayes_mag_init(net: Measured) -> Value:
    """PACBAYES-MAG-INIT: ¼ Σ_i ln((ε² + (σ'² + 1)‖w − w⁰‖²/ω)/(ε² + σ'²(w_i − w⁰_i)²)) + ln(n/σ') + 10."""
    assert net.magnitudes is not None
    return _pacbayes_magnitude(net, net.magnitudes.from_initial)


def pacbayes_mag_orig(net: Measured) -> Value:
    """PACBAYES-MAG-ORIG: ¼ Σ_i ln((ε² + (σ'² + 1)‖w‖²/ω)/(ε² + σ'²(w_i − w⁰_i)²)) + ln(n/σ') + 10."""
    assert net.magnitudes is not None
    return _pacbayes_magnitude(net, net.magnitudes.from_zero)


def pacbayes_mag_flatness(net: Measured) -> Value:
    """PACBAYES-MAG-FLATNESS: 1/σ'², σ' the noise in proportion to the weights that is tolerated."""
    assert net.magnitudes is not None
    return Value(-2 * safe_log(net.magnitudes.sigma), {"sigma": net.magnitudes.sigma})


def _row(
    evaluate: Callable[[Measured], Value],
    label: str,
    equation: int,
    needs: tuple[str, ...] = (),
    name: str = "",
    reference: str = "",
) -> Row:
    reference = reference or f"Jiang et al. 2020, eq. {equation}"
    name = name or evaluate.__name__
    return Row(name, "measure", evaluate, label, reference, risk=False, needs=needs, structure=())


_SPECTRAL: tuple[tuple[Callable[[Measured, LayerScales], Value], str, int, bool], ...] = (
    (_spec_init_main, "Spectral, distance from initialization", 29, True),
    (_spec_orig_main, "Spectral, distance from zero", 30, False),
    (_prod_of_spec_over_margin, "Product of spectral norms over margin", 31, False),
    (_prod_of_spec, "Product of spectral norms", 32, False),
    (_fro_over_spec, "Frobenius over spectral", 33, False),
    (_sum_of_spec_over_margin, "Sum of spectral norms over margin", 34, False),
    (_sum_of_spec, "Sum of spectral norms", 35, False),
    (_dist_spec_init, "Spectral distance from initialization", 41, True),
)


def _spectral_rows(suffix: str, where: str, scales: str, needs: tuple[str, ...] = ()) -> tuple[Row, ...]:
    """The spectral measures with one meaning of a layer's norms."""
    return tuple(
        _row(
            lambda net, formula=formula: formula(net, getattr(net, scales)),  # type: ignore[misc]
            label + where,
            equation,
            (*needs, *(("initial",) if initial else ())),
            formula.__name__.removeprefix("_") + suffix,
        )
        for formula, label, equation, initial in _SPECTRAL
    )


ROWS = (
    _row(params, "Parameters", 20),
    _row(inverse_margin, "Inverse margin", 22),
    *_spectral_rows("", "", "kernel_scales"),
    _row(prod_of_fro_over_margin, "Product of Frobenius norms over margin", 36),
    _row(prod_of_fro, "Product of Frobenius norms", 37),
    _row(sum_of_fro_over_margin, "Sum of Frobenius norms over margin", 38),
    _row(sum_of_fro, "Sum of Frobenius norms", 39),
    _row(fro_dist, "Frobenius distance from initialization", 40, ("initial",)),
    _row(param_norm, "Parameter norm", 42),
    _row(l2, "ℓ2 norm", 0, reference="Dziugaite et al. 2020"),
    _row(l2_dist, "ℓ2 distance from initialization", 0, ("initial",), reference="Dziugaite et al. 2020"),
    _row(path_norm_over_margin, "Path norm over margin", 43, ("log_squared_network",)),
    _row(path_norm, "Path norm", 44, ("log_squared_network",)),
    _row(pacbayes_init, "PAC-Bayes, from initialization", 48, ("initial", "flatness")),
    _row(pacbayes_orig, "PAC-Bayes, from zero", 49, ("flatness",)),
    _row(pacbayes_flatness, "PAC-Bayes flatness", 53, ("flatness",)),
    _row(pacbayes_mag_init, "PAC-Bayes by magnitude, from initialization", 56, ("initial", "magnitudes")),
    _row(pacbayes_mag_orig, "PAC-Bayes by magnitude, from zero", 57, ("initial", "magnitudes")),
    _row(pacbayes_mag_flatness, "PAC-Bayes flatness by magnitude", 61, ("magnitudes",)),
    *_spectral_rows("_fft", ", by Fourier symbols", "fourier", ("fourier",)),
    *_spectral_rows("_operator", ", of operators", "operator_scales", ("operator_scales",)),
)
