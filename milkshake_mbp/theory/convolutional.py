"""Generalization bounds made for convolutions: their complexities as functions of a network's norms (spec §9).

Each function returns ln of the complexity that a row adds to R̂_γ, at each of some margins γ, with hidden constants 1.
They hold for networks of layers and 1-Lipschitz functions between them; where a source knows chains alone, its
‖X‖Π_i s_i/s_l is the sensitivity to layer l here, which is the same on a chain and counts pooling and residual sums
elsewhere.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from milkshake_mbp.theory.layers import Layer
from milkshake_mbp.theory.network import Network, Through
from milkshake_mbp.theory.norms import frobenius_norm, group_norm, operator_norm
from milkshake_mbp.theory.paths import PathLengths
from milkshake_mbp.theory.perturbation import leave_one_out, logsumexp, safe_exp, safe_log
from milkshake_mbp.theory.transfer import transfer

__all__ = [
    "ConvolutionalDistances",
    "Patches",
    "gonon_2024",
    "gouk_2021",
    "graf_2022",
    "graf_2022_parameters",
    "ledent_2021",
    "lin_2019",
    "log_sensitivities",
    "long_2020",
]

_PSI = 2.7  # ψ of Graf et al. grows from 0 to ζ(3/2) = 2.612…


@dataclass(frozen=True)
class ConvolutionalDistances:
    """Natural logs of each layer's norms and its distances from its initial kernel, in the order of the layers.

    Gains are part of both kernels: K is gain·K, M the initial gain times the initial kernel.

    Attributes:
        parameters: W_l, entries of the kernel (no log).
        places: output places that share a row of the kernel (no log).
        log_operator: ln ‖A_l‖₂, the certified upper end.
        log_frobenius: ln ‖K_l‖_F of the kernel.
        log_1_inf: ln ‖K_l‖_{1,∞}, the largest ℓ1 norm of a kernel's row.
        log_initial: ln ‖op(M_l)‖₂.
        log_distance: ln ‖op(K_l) − op(M_l)‖₂.
        log_distance_frobenius: ln ‖K_l − M_l‖_F of the kernel.
        log_distance_1_inf: ln ‖K_l − M_l‖_{1,∞}.
        log_distance_rows: ln of the sum over rows of K_l − M_l of their ℓ2 norms.
        log_distance_taps: ln of the sum over rows and places of the kernel of the ℓ2 norms over input channels.
    """

    parameters: tuple[int, ...]
    places: tuple[int, ...]
    log_operator: tuple[float, ...]
    log_frobenius: tuple[float, ...]
    log_1_inf: tuple[float, ...]
    log_initial: tuple[float, ...]
    log_distance: tuple[float, ...]
    log_distance_frobenius: tuple[float, ...]
    log_distance_1_inf: tuple[float, ...]
    log_distance_rows: tuple[float, ...]
    log_distance_taps: tuple[float, ...]

    @classmethod
    def measure(
        cls,
        layers: Sequence[Layer],
        initial: Sequence[Layer],
        moved: Sequence[Layer] | None = None,
        norm: Callable[[Layer], float] | None = None,
    ) -> "ConvolutionalDistances":
        """Measure.

        Args:
            layers: in forward order.
            initial: likewise, with the initial kernels and gains.
            moved: what they differ by (`Layer.difference`), if that is at hand.
            norm: from a layer to an upper bound on ‖A‖₂; by default `operator_norm`.

        Raises:
            ValueError: the kernels' shapes differ, or one holds NaN or infinity.
        """
        moved = moved or [layer.difference(start) for layer, start in zip(layers, initial, strict=True)]
        norm = norm or (lambda layer: operator_norm(layer)[1])
        kernels = [layer.effective_kernel for layer in layers]
        differences = [layer.kernel for layer in moved]

        def logs(values: Sequence[float]) -> tuple[float, ...]:
            return tuple(map(safe_log, values))

        return cls(
            parameters=tuple(kernel.numel() for kernel in kernels),
            places=tuple(max(layer.places, 1) for layer in layers),
            log_operator=logs([norm(layer) for layer in layers]),
            log_frobenius=logs([float(frobenius_norm(kernel)) for kernel in kernels]),
            log_1_inf=logs([float(group_norm(kernel, 1, math.inf)) for kernel in kernels]),
            log_initial=logs([norm(layer) for layer in initial]),
            log_distance=logs([norm(layer) for layer in moved]),
            log_distance_frobenius=logs([float(frobenius_norm(kernel)) for kernel in differences]),
            log_distance_1_inf=logs([float(group_norm(kernel, 1, math.inf)) for kernel in differences]),
            log_distance_rows=logs([float(group_norm(kernel, 2, 1)) for kernel in differences]),
            log_distance_taps=logs([_taps_norm(layer) for layer in moved]),
        )


def _taps_norm(layer: Layer) -> float:
    """Σ over rows and taps of the ℓ2 norm over input channels: a row's ℓ2 norm for a Linear layer."""
    size = 1 if layer.window is None else math.prod(layer.window.size)
    taps = layer.kernel.reshape(len(layer.kernel), -1, size).transpose(1, 2).flatten(0, 1)
    return float(group_norm(taps, 2, 1))


@dataclass(frozen=True)
class Patches:
    """What the samples are where convolutions read them, in a network in which nothing branches.

    Attributes:
        rows: rows of each kernel.
        log_norms: ln of the largest ℓ2 norm of what one output of a layer reads, a patch of every channel of a group,
            over the samples.
        log_functions: ln of the Lipschitz constant of what stands between a layer and the next, at least 0.
        log_last_row: ln of the largest ℓ2 norm of a row of the last layer.
    """

    rows: tuple[int, ...]
    log_norms: tuple[float, ...]
    log_functions: tuple[float, ...]
    log_last_row: float

    @classmethod
    def measure(cls, network: Network, batches: Iterable[Tensor]) -> "Patches":
        """Measure, in one pass over the samples.

        Args:
            network: wired, nothing branching, no layer twice.
            batches: (n, *inputs) samples.
        """
        largest: dict[str, Tensor] = {}
        for x in batches:
            for node, (given, *_), _ in network.steps(x):
                if isinstance(node.op, Layer):
                    square = _largest_patch(node.op, given)
                    largest[node.op.name] = torch.maximum(largest.get(node.op.name, square), square)
        functions, behind = [], 0.0
        for node in reversed(network.nodes):
            if isinstance(node.op, Layer):
                functions.append(behind)
                behind = 0.0
            elif isinstance(node.op, Through):
                behind += max(0.0, safe_log(node.op.lipschitz))
        return cls(
            tuple(len(layer.kernel) for layer in network.layers),
            tuple(safe_log(float(largest[layer.name])) / 2 for layer in network.layers),
            tuple(reversed(functions)),
            safe_log(float(group_norm(network.layers[-1].effective_kernel, 2, math.inf))),
        )


def _largest_patch(layer: Layer, x: Tensor) -> Tensor:
    """The largest squared ℓ2 norm of what an output reads of any sample."""
    squares = x.detach().square()
    if layer.window is None:
        return squares.flatten(1).sum(dim=1).amax()
    by_group = squares.unflatten(1, (layer.window.groups, -1)).sum(dim=2)
    ones = by_group.new_ones(layer.window.groups, math.prod(layer.window.size))
    return replace(layer, kernel=ones, gain=None, bias=None).apply(ones, by_group).amax()


def log_sensitivities(network: Network, log_norms: Mapping[str, float], log_input_norm: float) -> dict[str, float]:
    """Ln of how far the output moves if a layer's operator moves by 1 in ‖·‖₂: ‖X‖Π_{i≠l}‖A_i‖₂ on a chain.

    Args:
        network: wired.
        log_norms: ln of an upper bound on ‖A‖₂, by layer's name.
        log_input_norm: ln of a bound on ‖x‖₂.

    Raises:
        ValueError: the network is not wired.
    """
    return {
        layer.name: transfer(
            network, log_input_norm, log_norms, log_differences={layer.name: 0.0}, log_perturbed=log_norms
        ).log_distance
        for layer in network.layers
    }


def graf_2022(
    log_sensitivities: Sequence[float],
    norms: ConvolutionalDistances,
    log_margin: Tensor,
    num_samples: int,
) -> Tensor:
    """Ln of 4/n + 12 H_{n−1}/√n · √ln(2W) · (Σ_l ⌈C_l^{2/3}⌉)^{3/2}, C_l = (4/γ)·sensitivity_l·‖K_l − M_l‖_{2,1}.

    ‖·‖_{2,1} sums the ℓ2 norms over input channels (`log_distance_taps`), W is the most parameters of a layer, H the
    harmonic numbers; ‖X‖/√n, the root mean square of ‖x_i‖, is the input norm behind the sensitivities.

    Args:
        log_sensitivities: of `log_sensitivities`, in the order of the layers.
        norms: norms of the layers.
        log_margin: (m,) ln γ.
        num_samples: n.

    Reference:
        Graf, Zeng, Rieck, Niethammer and Kwitt, On measuring excess capacity in neural networks, NeurIPS 2022, Thm. 3.5
        (their code leaves the ceilings out and has ln n for H).
    """
    logs = _log_ceil(2 / 3 * _log_capacities(log_sensitivities, norms.log_distance_taps, log_margin))
    width = math.log(math.log(2 * max(norms.parameters))) / 2
    scale = math.log(12 * _harmonic(num_samples - 1)) - math.log(num_samples) / 2 + width
    return _plus(scale + 1.5 * logs.logsumexp(dim=0), math.log(4 / num_samples))


def graf_2022_parameters(
    log_sensitivities: Sequence[float],
    norms: ConvolutionalDistances,
    log_margin: Tensor,
    num_samples: int,
) -> Tensor:
    """Ln of 12/√n · sqrt(Σ_l 2W_l·(ln(1 + ⌈L²C_l²⌉) + ψ)), C_l as in `graf_2022` and ψ ≤ 2.7 (0 where C_l = 0).

    Args:
        log_sensitivities: of `log_sensitivities`, in the order of the layers.
        norms: norms of the layers.
        log_margin: (m,) ln γ.
        num_samples: n.

    Reference:
        Graf et al. 2022, Thm. 3.5, second bound.
    """
    capacities = _log_capacities(log_sensitivities, norms.log_distance_taps, log_margin)
    logs = _log_ceil(2 * (capacities + math.log(len(norms.parameters))))
    covering = torch.where(capacities > -math.inf, _plus(logs, 0.0) + _PSI, 0.0)
    parameters = torch.tensor(norms.parameters, dtype=torch.float64)[:, None]
    total = (2 * parameters * covering).sum(dim=0)
    return math.log(12) - math.log(num_samples) / 2 + total.log() / 2


def lin_2019(
    log_sensitivities: Sequence[float],
    norms: ConvolutionalDistances,
    log_margin: Tensor,
    num_samples: int,
) -> Tensor:
    """Ln of 16/√n · ((2/γ)·L²·Σ_l sensitivity_l·W_l²·√places_l·‖K_l‖_F)^{1/4}.

    Args:
        log_sensitivities: of `log_sensitivities`, in the order of the layers.
        norms: norms of the layers.
        log_margin: (m,) ln γ.
        num_samples: n.

    Reference:
        Lin and Zhang, Generalization bounds for convolutional neural networks, arXiv:1910.01487, Lemma 18.
    """
    terms = [
        sensitivity + 2 * math.log(parameters) + math.log(places) / 2 + frobenius
        for sensitivity, parameters, places, frobenius in zip(
            log_sensitivities, norms.parameters, norms.places, norms.log_frobenius, strict=True
        )
    ]
    root = math.log(2) - log_margin + 2 * math.log(len(terms)) + logsumexp(terms)
    return math.log(16) + root / 4 - math.log(num_samples) / 2


def gouk_2021(
    norms: ConvolutionalDistances,
    log_largest_input: float,
    num_inputs: int,
    num_classes: int,
    log_margin: Tensor,
    num_samples: int,
) -> Tensor:
    """Ln of 2^{L+1} k Π_l‖K_l‖_{1,∞} · Σ_l ‖K_l − M_l‖_{1,∞}/‖K_l‖_{1,∞} · √ln(2d) · max‖x‖_∞/(γ√n).

    On convolutions ‖·‖_{1,∞} of the kernel is that of the operator, so that the size of the image does not matter.

    Args:
        norms: norms of the layers.
        log_largest_input: ln max ‖x‖_∞.
        num_inputs: d, entries of an input.
        num_classes: k.
        log_margin: (m,) ln γ.
        num_samples: n.

    Reference:
        Gouk, Hospedales and Pontil, Distance-based regularisation of deep networks for fine-tuning, ICLR 2021, Thm. 1
        (the code of Graf et al. has ln d for √ln(2d)).
    """
    others = leave_one_out(norms.log_1_inf)
    moved = logsumexp([rest + distance for rest, distance in zip(others, norms.log_distance_1_inf, strict=True)])
    scale = (len(others) + 1) * math.log(2) + math.log(num_classes) + math.log(math.log(2 * num_inputs)) / 2
    return scale + moved + log_largest_input - log_margin - math.log(num_samples) / 2


def ledent_2021(norms: ConvolutionalDistances, patches: Patches, log_margin: Tensor, num_samples: int) -> Tensor:
    """Ln of 768 R √(log₂(32Γn² + 7W̄n)) ln(n)/√n + 4/n, R = (Σ_l r_l^{2/3})^{3/2}, r_l = B_{l−1}·ρ_l·a_l.

    a_l is the sum of the rows' ℓ2 distances (‖K_L − M_L‖_F in the last layer), B_l the largest ℓ2 norm of a patch that
    layer l + 1 reads (γ behind the last), ρ_l = max_{i≥l} √places_l·Π_{j=l+1}^i s_j/B_i with s_j = ‖A_j‖₂ (the largest
    row in the last layer), times the Lipschitz constants of what stands between, Γ = max_l r_l·places_l·rows_l and
    W̄ = max_l places_l·rows_l.

    Args:
        norms: norms of the layers.
        patches: patches of the samples.
        log_margin: (m,) ln γ.
        num_samples: n.

    Reference:
        Ledent, Mustafa, Lei and Kloft, Norm-based generalisation bounds for deep multi-class convolutional neural
        networks, AAAI 2021, Thm. 11. (The code of Graf et al. leaves i = l out of the maximum and has B_{L−1}/γ for
        ρ_L = 1/γ.)
    """
    depth = len(patches.rows)
    slopes = [*norms.log_operator[:-1], patches.log_last_row]
    distances = [*norms.log_distance_rows[:-1], norms.log_distance_frobenius[-1]]
    behind = [log_margin.new_full(log_margin.shape, norm) for norm in patches.log_norms[1:]] + [log_margin]
    log_r = []
    for layer in range(depth):
        side = math.log(norms.places[layer]) / 2 if layer < depth - 1 else 0.0
        steepest = torch.stack(
            [
                sum(slopes[layer + 1 : i + 1]) + sum(patches.log_functions[layer : i + 1]) - behind[i]
                for i in range(layer, depth)
            ]
        ).amax(dim=0)
        log_r.append(patches.log_norms[layer] + side + steepest + distances[layer])
    r = torch.stack(log_r)
    units = [math.log(places * rows) for places, rows in zip(norms.places, patches.rows, strict=True)]
    log_n = math.log(num_samples)
    largest = (r + r.new_tensor(units)[:, None]).amax(dim=0)
    inside = _plus(math.log(32) + largest + 2 * log_n, math.log(7) + max(units) + log_n)
    total = 1.5 * torch.logsumexp(2 / 3 * r, dim=0)
    main = math.log(768) + total + (inside / math.log(2)).log() / 2 + math.log(log_n) - log_n / 2
    return _plus(main, math.log(4) - log_n)


def long_2020(norms: ConvolutionalDistances, log_input_norm: float, log_margin: Tensor, num_samples: int) -> Tensor:
    """Ln of sqrt(W(β + νL + ln(χλβ))/n) where s = χλβ(1 + ν + β/L)^L ≥ 5, else of s√(W/n).

    W is the number of all parameters, β = Σ_l‖op(K_l) − op(M_l)‖₂, 1 + ν = max(1, max_l‖op(M_l)‖₂), χ the largest ‖x‖₂
    and λ = 1/γ.

    Args:
        norms: norms of the layers.
        log_input_norm: ln χ.
        log_margin: (m,) ln γ.
        num_samples: n.

    Reference:
        Long and Sedghi, Generalization bounds for deep convolutional neural networks, ICLR 2020, Thm. 3.1.
    """
    depth = len(norms.parameters)
    log_beta = logsumexp(norms.log_distance)
    log_base = logsumexp([max(0.0, *norms.log_initial), log_beta - math.log(depth)])
    log_lipschitz = log_input_norm - log_margin + log_beta
    log_size = math.log(sum(norms.parameters)) - math.log(num_samples)
    nu = safe_exp(max(0.0, *norms.log_initial)) - 1
    inside = (safe_exp(log_beta) + nu * depth + log_lipschitz).clamp_min(0)
    log_s = log_lipschitz + depth * log_base
    return torch.where(log_s < math.log(5), log_s + log_size / 2, (inside.log() + log_size) / 2)


def gonon_2024(
    log_path_norm: float,
    lengths: PathLengths,
    log_largest_input: float,
    num_inputs: int,
    num_outputs: int,
    log_margin: Tensor,
    num_samples: int,
) -> Tensor:
    """Ln of 4B‖Φ‖₁/(γ√n) · sqrt(D ln 3 + M ln K + ln((d + 1)k)), ‖Φ‖₁ the ℓ1 path norm summed over outputs.

    Any graph of layers, ReLU-like functions, max pooling, sums and biases. B = max(1, max‖x‖_∞), the 1 for biases.

    Args:
        log_path_norm: ln Σ φ_1 over the outputs (`log_graph_path_norm`).
        lengths: D, M and K (`path_lengths`).
        log_largest_input: ln max ‖x‖_∞.
        num_inputs: d, entries of an input.
        num_outputs: k.
        log_margin: (m,) ln γ.
        num_samples: n.

    Reference:
        Gonon, Brisebarre, Riccietti and Gribonval, A path-norm toolkit for modern networks, ICLR 2024, Thm. 3.1 and
        Remark 3.1.
    """
    inside = (
        lengths.depth * math.log(3)
        + lengths.maxima * math.log(lengths.window)
        + math.log((num_inputs + 1) * num_outputs)
    )
    scale = math.log(4) + max(0.0, log_largest_input) - log_margin - math.log(num_samples) / 2
    return scale + log_path_norm + math.log(inside) / 2


def _log_capacities(log_sensitivities: Sequence[float], log_distances: Sequence[float], log_margin: Tensor) -> Tensor:
    """(layers, m) ln C_l."""
    products = [
        -math.inf if distance == -math.inf else sensitivity + distance
        for sensitivity, distance in zip(log_sensitivities, log_distances, strict=True)
    ]
    return math.log(4) + torch.tensor(products, dtype=torch.float64)[:, None] - log_margin


def _log_ceil(log_values: Tensor) -> Tensor:
    """Ln ⌈v⌉; beyond 2⁵³ a float is whole."""
    return torch.where(log_values < 36, log_values.clamp_max(36).exp().ceil().log(), log_values)


def _plus(log_values: Tensor, log_other: float) -> Tensor:
    return torch.logaddexp(log_values, log_values.new_tensor(log_other))


def _harmonic(count: int) -> float:
    """H_count = Σ_{m≤count} 1/m, from above."""
    if count < 100:
        return math.fsum(1 / m for m in range(1, count + 1))
    return math.log(count) + 0.57721566490153287 + 1 / (2 * count) - 1 / (12 * count**2) + 1 / (120 * count**4)
