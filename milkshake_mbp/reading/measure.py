"""Measures the quantities of a module and its data that the bounds need, once for all bounds."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from milkshake_mbp.errors import UserError
from milkshake_mbp.reading.network import Reading, fit, read
from milkshake_mbp.reading.ops import is_shift, moves_only
from milkshake_mbp.reading.outputs import check_targets, measure_outputs, pass_samples, two_classes
from milkshake_mbp.reading.record import evaluating, uncompiled
from milkshake_mbp.reading.rule import PruneRule, check_strength
from milkshake_mbp.reading.samples import Samples
from milkshake_mbp.theory.bounds import order_margins, search_paper_strength
from milkshake_mbp.theory.convolutional import ConvolutionalDistances, Patches, log_sensitivities
from milkshake_mbp.theory.cushions import Cushions
from milkshake_mbp.theory.flatness import Flatness, MagnitudeFlatness, search_flatness
from milkshake_mbp.theory.layers import Layer
from milkshake_mbp.theory.measured import (
    HeldOut,
    InitialDistances,
    Kernels,
    LayerNorms,
    Measured,
    Paths,
    PrunedLayer,
)
from milkshake_mbp.theory.network import Network, Through
from milkshake_mbp.theory.norms import operator_norm
from milkshake_mbp.theory.paths import log_graph_path_norm, log_squared_network, path_lengths
from milkshake_mbp.theory.perturbation import logsumexp, safe_log
from milkshake_mbp.theory.pruning import MaskDraw
from milkshake_mbp.theory.scales import fourier_scales, kernel_scales, operator_scales
from milkshake_mbp.theory.transfer import largest_logs, transfer
from milkshake_mbp.theory.unrolled import unroll

__all__ = ["Clock", "check_search", "measure", "measure_stability", "read_samples", "search_on"]

_READ = 16
_CUSHION_SAMPLES = 256
_FLATNESS_SAMPLES = 2000
# Jiang et al. 2020's ε.
_MAGNITUDE_FLOOR = 1e-3


class Clock:
    """Wall time by part.

    Attributes:
        seconds: by the part's name.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count what happens inside to a part."""
        started = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started


def measure(
    module: nn.Module,
    train: Any,
    test: Any = None,
    *,
    prune_d: float | Literal["auto"] = 1.0,
    seed: int = 0,
    keep_diagonal: bool = True,
    failure: float = 0.05,
    delta: float = 0.05,
    initial: Mapping[str, Tensor] | None = None,
    stability: bool = True,
    magnitudes: bool = False,
    clock: Clock | None = None,
    rule: PruneRule | None = None,
) -> Measured:
    """Measure a module with its current weights; `theory.bounds.evaluate` of the result is its ladder.

    Args:
        module: a classifier, called as `module(inputs)`, that returns (n, k) logits, or one logit with classes 0 and 1.
        train: its training samples: a DataLoader, a Dataset, (inputs, targets), or Samples.
        test: test samples, in any of these forms, on which no choice depends; None if they may not be used.
        prune_d: pruning strength of the rows about the pruned network, ≥ 0; "auto" for the paper's search.
        seed: seed of the masks.
        keep_diagonal: whether the masks keep entries (i, i).
        failure: η, the failure probability for which Theorem 5.2 is evaluated.
        delta: δ, joint failure probability of the `rigorous` rows that are computed from the training samples.
        initial: the weights before training, by parameter name, for the rows that need them.
        stability: whether to measure the noise that activations and weights tolerate, which takes seconds.
        magnitudes: whether to also measure the noise that is proportional to the weights, which doubles this time.
        clock: clock that counts the time of `forward`, `bounds` and `stability`.
        rule: which kernels are pruned in the rows about the pruned network, and at which strengths; by default all
            kernels, at prune_d.

    Raises:
        UserError: the module or the data cannot be read, or the rule names no layer of it; or weights or outputs are
            not finite.
    """
    check_strength("prune_d", prune_d)
    rule = rule or PruneRule()
    train, test = Samples.of(train), None if test is None else Samples.of(test)
    clock = clock or Clock()
    with clock("forward"):
        reading = read_samples(module, train)
        outputs = measure_outputs(module, train)
        held_out = None if test is None else measure_outputs(module, test, norms=())
    with clock("bounds"):
        weights = reading.matrices(module)
        try:
            norms = LayerNorms.measure(weights, reading.chain)
            draw = MaskDraw(weights, seed)
        except ValueError as error:
            raise UserError(f"{error}; training diverged, try a smaller lr") from error
        margins, margin = order_margins(outputs.margins), float(outputs.margins.amin())
        if math.isnan(margin):
            raise UserError("the network's outputs are NaN; training diverged, try a smaller lr")
        log_input_norm = safe_log(outputs.input_norm)
        search = None
        if reading.chain:
            search = search_paper_strength(weights, norms, margin, len(margins), log_input_norm, draw=draw)
        if prune_d == "auto":
            check_search(reading, "prune_d", rule)
        d = float(search.d if prune_d == "auto" and search is not None else prune_d)
        strengths = tuple(strength or 0.0 for strength in rule.of(reading.kernels, d))
        masks = draw.masks(strengths, keep_diagonal)
        parts = zip(weights, masks, strict=True)
        pruned, compressed = zip(*(PrunedLayer.compress(weight, mask) for weight, mask in parts), strict=True)
        distances = None
        if initial is not None:
            distances = InitialDistances.measure(weights, _initial(reading, initial))
    with clock("forward"):
        compressed_margins = measure_outputs(module, train, reading.replaced(module, compressed), norms=()).margins
        true_error = None if held_out is None or search is None else held_out.error
        pruned_error = None if test is None else _error(module, test, reading, weights, masks)
        if test is not None and search is not None and search.d > 0:
            true_error = _error(module, test, reading, weights, draw.masks(search.d, keep_diagonal=False))
    graph: dict[str, Any] = {}
    if reading.network.nodes and (reading.biases or not plain_chain(reading.network)):
        if initial is not None and _reads_patches(reading.network):
            with clock("forward"):
                like = reading.network.layers[0].kernel
                graph["patches"] = Patches.measure(reading.network, (x for x, _ in train.batches(like)))
        with clock("bounds"):
            graph |= _measure_graph(reading, train, compressed, initial, log_input_norm)
    measured = Measured(
        **graph,
        norms=norms,
        margins=margins,
        num_samples=len(margins),
        log_input_norm=log_input_norm,
        num_classes=outputs.num_classes,
        d=d,
        given_strengths=strengths if rule else None,
        layers=tuple(kernel.layer for kernel in reading.kernels),
        log_lipschitz=_log_lipschitz(reading.network),
        broken={str(trait): why for trait, why in reading.network.broken.items()} | _premises(train),
        input_norms=outputs.input_norms,
        search=search,
        pruned=pruned,
        failure=failure,
        delta=delta,
        compressed_margins=compressed_margins.detach().clone(),
        distinct=train.distinct,
        weight_bits=8 * max(weight.element_size() for weight in weights),
        plain=reading.network.plain,
        biases=reading.biases,
        initial=distances,
        test=None if held_out is None else HeldOut(held_out.errors, len(held_out.margins), held_out.error),
        true_error=true_error,
        pruned_error=pruned_error,
    )
    if stability:
        with clock("stability"):
            measured = measure_stability(
                measured, module, train, reading, seed=seed, initial=initial, magnitudes=magnitudes
            )
    return measured


def _error(
    module: nn.Module, test: Samples, reading: Reading, weights: Sequence[Tensor], masks: Sequence[Tensor]
) -> float:
    """Share of the samples that the masked network misclassifies."""
    masked = [weight * mask for weight, mask in zip(weights, masks, strict=True)]
    return measure_outputs(module, test, reading.replaced(module, masked), norms=()).error


def measure_stability(
    measured: Measured,
    module: nn.Module,
    train: Any,
    reading: Reading | None = None,
    *,
    seed: int = 0,
    initial: Mapping[str, Tensor] | None = None,
    magnitudes: bool = False,
) -> Measured:
    """Measure the noise that the weights tolerate and, for the paper's network, the activations too.

    Args:
        measured: the measurements of the same module.
        module: the module, unchanged since.
        train: its training samples.
        reading: result of `read_samples`, if the module was read already.
        seed: seed of the noise.
        initial: the weights before training, by parameter name.
        magnitudes: whether to also search for the noise that is proportional to the weights, which doubles the time.
    """
    train = Samples.of(train)
    reading = reading or read_samples(module, train)
    few, weights = train.some(_FLATNESS_SAMPLES, seed), reading.matrices(module)

    def error(noisy: Sequence[Tensor]) -> float:
        return pass_samples(module, few, reading.replaced(module, noisy), norms=()).error

    def search(floor: float | None = None) -> Flatness | None:
        """None of a network that tolerates no noise."""
        with suppress(ValueError), evaluating(module), uncompiled():
            return search_flatness(weights, error, seed=seed, num_samples=len(few), floor=floor)
        return None

    flatness = search()
    by_magnitude: MagnitudeFlatness | None = None
    if magnitudes and (found := search(_MAGNITUDE_FLOOR)):
        starts = None if initial is None else _initial(reading, initial)
        by_magnitude = MagnitudeFlatness.measure(weights, starts, found.sigma, _MAGNITUDE_FLOOR)
    cushions = None
    if _relu_chain(reading.network):
        inputs, _ = train.some(_CUSHION_SAMPLES, seed).first(_CUSHION_SAMPLES)
        cushions = Cushions.measure(weights, inputs.to(weights[0].device, weights[0].dtype).flatten(1), seed=seed)
    return replace(measured, flatness=flatness, cushions=cushions, magnitudes=by_magnitude)


def plain_chain(network: Network) -> bool:
    """Whether it is a chain of Linear layers with one usual function between any two, so that widths describe it."""
    functions = {
        (op.name, op.numbers)
        for op in (node.op for node in network.nodes)
        if isinstance(op, Through) and not is_shift(op) and not moves_only(op)
    }
    usual = len(functions) <= 1 and all(not numbers for _, numbers in functions)
    return usual and not {"wired", "chain", "linear", "unnormalized"} & set(network.broken)


def _reads_patches(network: Network) -> bool:
    """Whether the bound by the patches that convolutions read is of such networks."""
    broken = {"sequence", "bias_free", "zero_preserving"} & set(network.broken)
    return "linear" in network.broken and not broken and network.layers[-1].places == 1


def _measure_graph(
    reading: Reading,
    train: Samples,
    compressed: Sequence[Tensor],
    initial: Mapping[str, Tensor] | None,
    log_input_norm: float,
) -> dict[str, Any]:
    """What the rows read of a wired network that is not a plain chain, by the names of `Measured`."""
    network, inputs = reading.network, tuple(train.first(1)[0].shape[1:])
    found: dict[str, Any] = {"structure": network.structure_length(), "given_inputs": math.prod(inputs)}
    if not {"homogeneous", "zero_preserving"} & set(network.broken):
        paths = log_graph_path_norm(network, 1, inputs).flatten().tolist()
        squared = log_squared_network(network, inputs).flatten().tolist()
        found["given_paths"] = Paths(logsumexp(paths), path_lengths(network), logsumexp(squared))
    if not {"chain", "linear", "unnormalized"} & set(network.broken):
        return found

    @cache
    def norm(layer: Layer) -> float:
        return operator_norm(layer)[1]

    changed = [
        layer.with_kernel(matrix.to(layer.kernel.device)).difference(layer)
        for layer, matrix in zip(network.layers, compressed, strict=True)
    ]
    norms = largest_logs(network, norm)
    moved = {layer.name: safe_log(norm(layer)) for layer in changed}
    found["log_moved"] = transfer(network, log_input_norm, norms, log_differences=moved).log_distance
    starts = differences = None
    if initial is not None:
        starts = dict(zip((layer.name for layer in network.layers), _starts(reading, initial), strict=True))
        differences = {layer.name: layer.difference(starts[layer.name]) for layer in network.layers}
        sensitivities = log_sensitivities(network, norms, log_input_norm)
        found["given_kernels"] = Kernels(
            ConvolutionalDistances.measure(network.layers, list(starts.values()), list(differences.values()), norm),
            tuple(sensitivities[layer.name] for layer in network.layers),
        )
    if "sequence" not in network.broken:
        found["given_unrolled"] = unroll(network, inputs, norm, starts, differences)
    moved_layers = [] if differences is None else list(differences.values())
    found["given_scales"] = kernel_scales(network.layers, moved_layers)
    if "linear" in network.broken:
        found["operator_scales"] = operator_scales(network.layers, moved_layers, norm)
        found["fourier"] = fourier_scales(network.layers, moved_layers, inputs[1:])
    return found


def read_samples(module: nn.Module, samples: Samples) -> Reading:
    """Read a module, with its first samples.

    Raises:
        UserError: the module or the samples cannot be read, or do not fit each other.
    """
    inputs, targets = samples.first(_READ)
    reading = read(module, inputs)
    with torch.no_grad(), evaluating(module), uncompiled():
        logits = module(fit(inputs, next(module.parameters())))
    check_targets(two_classes(logits).cpu(), targets)
    if logits.ndim == 1 or logits.shape[1] == 1:
        classes = torch.cat([numbers for _, numbers in samples.batches()]).unique().tolist()
        if classes != [0, 1]:
            raise UserError(
                f"the module has one logit, which separates class 1 from class 0, but the training samples have the "
                f"classes {', '.join(map(str, classes))}: give the module an output for each class"
            )
    return reading


def check_search(reading: Reading, key: str, rule: PruneRule) -> None:
    """Check that the paper's search for d is defined.

    Args:
        reading: result of `read_samples`.
        key: name of the key that is "auto", for the message.
        rule: which of the kernels are pruned.

    Raises:
        UserError: the module is not the paper's network, or not all of it is pruned at one strength.
    """
    if not reading.chain:
        raise UserError(f"{key}: auto needs the paper's network, but {reading.not_a_chain}")
    if rule:
        raise UserError(
            f"{key}: auto is one strength for all layers, but the rule treats some differently: give a number"
        )


def search_on(module: nn.Module, train: Any, seed: int = 0, rule: PruneRule | None = None) -> float:
    """The strength d that the paper's search finds for a module on its training samples.

    Raises:
        UserError: the module is not the paper's network, the rule treats layers differently, or weights are not finite.
    """
    train = Samples.of(train)
    reading = read_samples(module, train)
    check_search(reading, "d", rule or PruneRule())
    weights, outputs = reading.matrices(module), measure_outputs(module, train)
    try:
        return search_paper_strength(
            weights,
            LayerNorms.measure(weights),
            float(outputs.margins.amin()),
            len(outputs.margins),
            safe_log(outputs.input_norm),
            seed=seed,
        ).d
    except ValueError as error:
        raise UserError(f"{error}; training diverged, try a smaller lr") from error


def _initial(reading: Reading, initial: Mapping[str, Tensor]) -> list[Tensor]:
    missing = [kernel.parameter for kernel in reading.kernels if kernel.parameter not in initial]
    if missing:
        raise UserError(f"initial: expected the initial weights of all kernels, {', '.join(missing)} are missing")
    return [kernel.to_matrix(initial[kernel.parameter]) for kernel in reading.kernels]


def _starts(reading: Reading, initial: Mapping[str, Tensor]) -> list[Layer]:
    """The layers with their initial kernels, and with their initial gains where those are known."""
    gains = reading.gains(initial)
    return [
        replace(layer, kernel=start.to(layer.kernel), gain=gains.get(layer.name, layer.gain))
        for layer, start in zip(reading.network.layers, _initial(reading, initial), strict=True)
    ]


def _log_lipschitz(network: Network) -> float:
    constants = [node.op.lipschitz for node in network.nodes if isinstance(node.op, Through)]
    return math.fsum(math.log(constant) for constant in constants if 1 < constant < math.inf)


def _relu_chain(network: Network) -> bool:
    """Whether it is A_L φ(… φ(A_1 x)) with φ the ReLU between any two layers."""
    if not network.nodes or {"chain", "linear", "bias_free"} & set(network.broken):
        return False
    kinds = [
        "layer" if isinstance(node.op, Layer) else node.op.name
        for node in network.nodes
        if isinstance(node.op, (Layer, Through)) and not (isinstance(node.op, Through) and node.op.name == "Flatten")
    ]
    return kinds == ["layer", "ReLU"] * (len(network.layers) - 1) + ["layer"]


def _premises(train: Samples) -> dict[str, str]:
    """What a guarantee from these samples needs and does not have."""
    broken = {}
    if train.label_noise > 0:
        broken["clean_labels"] = (
            f"label_noise is {train.label_noise:g}: the error is counted on noisy labels, so it bounds only that error"
        )
    if not train.still:
        broken["still_samples"] = "the samples change from one reading to the next, as under augmentation"
    return broken
