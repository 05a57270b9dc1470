"""The strong ticket, measured: how well pruning alone makes a random network imitate a target, and at what width."""

import hashlib
import json
import math
import statistics
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from milkshake_mbp.callbacks.data import test_samples, train_samples
from milkshake_mbp.errors import UserError
from milkshake_mbp.experiment.lottery.rounds import Branch, check_keys, lottery_folder, train
from milkshake_mbp.files import write_csv
from milkshake_mbp.framework.checkpoints import read_weights
from milkshake_mbp.framework.datamodules import load_datamodule
from milkshake_mbp.framework.datamodules.datamodule import DataModule
from milkshake_mbp.reading import registered_kernels
from milkshake_mbp.reporting.terminal import Fitted
from milkshake_mbp.runs.files import RunFiles
from milkshake_mbp.runs.job import Job
from milkshake_mbp.runs.weights import chain_from_state
from milkshake_mbp.theory.lottery import broken_hypotheses, log_ticket_width, ticket_bound
from milkshake_mbp.theory.margins import error_rate, margins
from milkshake_mbp.theory.norms import spectral_norm
from milkshake_mbp.theory.occam import elias_gamma_length, occam_bound
from milkshake_mbp.theory.perturbation import default_step, discretize
from milkshake_mbp.theory.strong_ticket import (
    Method,
    StrongTicket,
    Target,
    boxed_error,
    find_ticket,
    log_mask_count,
    nearest_error,
    subset_sum,
)

__all__ = ["STRONG_NOTES", "Imitation", "imitate", "measure_single_weights", "run_strong", "strong_table"]

STRONG_NOTES = (
    "For each method and seed, the smallest network that is close enough. Candidates: hidden units from which each "
    "weight is chosen. Error: the largest distance from the target's outputs, on the training set and proved for the "
    "whole ball of inputs, over the target's largest output. 6.2: natural log of Theorem 6.2's bound. Mask: the error "
    "bound from the bits of the mask; 1 is vacuous."
)

_BALL_SAMPLES = 10_000
# Of one-weight experiments: weights drawn from the target's, and the share of them that an error must cover.
_SINGLE_WEIGHTS = 200
_COVERED = 0.95


@dataclass(frozen=True)
class Samples:
    """Rescaled inputs, ‖x‖₂ ≤ 1, and what the target makes of them.

    Attributes:
        inputs: (n, d_0) float64.
        targets: (n,) class indices; empty where there are none.
        outputs: (n, k) of the rescaled target.
    """

    inputs: Tensor
    targets: Tensor
    outputs: Tensor


@dataclass(frozen=True)
class Imitation:
    """One random network pruned to imitate the target. Errors are in ℓ2 over the outputs of the rescaled networks.

    Attributes:
        method: "nearest" (Malach et al. 2020) or "subset_sum" (Pensia et al. 2020).
        candidates: units between for each input.
        seed: of the random network.
        width: D_G, its widest layer.
        parameters: its weights.
        active: those that survive.
        train_error: the largest on the training set.
        relative_error: that, over the target's largest output there.
        random_error: the largest on random inputs in the ball.
        ball_bound: proven for the whole ball.
        agreement: share of the test set given the target's class.
        test_error: of the ticket, a probability.
        seconds: to find it.
    """

    method: Method
    candidates: int
    seed: int
    width: int
    parameters: int
    active: int
    train_error: float
    relative_error: float
    random_error: float
    ball_bound: float
    agreement: float
    test_error: float
    seconds: float


def run_strong(args: Namespace, console: Console) -> tuple[Path, dict[str, Any]]:
    """Train the target, imitate it with networks of every size asked for, and bound what comes out.

    Args:
        args: the configuration, with the keys of `Strong`.
        console: where to say what happens.

    Returns:
        The folder written, and the content of its result.json: `target`, `imitations`, `single_weights`, `found`.

    Raises:
        UserError: the target is not bias-free with ReLU, or its training went wrong.
    """
    if args.bias or args.ffn_activation != "relu":
        raise UserError(
            f"bias, ffn_activation: Theorem 6.1's target is a ReLU network without biases, got bias {args.bias} and "
            f"{args.ffn_activation}"
        )
    check_keys(args)
    given = copy(args)
    given.ffn_hidden_dim, given.ffn_num_layers, given.sketch_rounds = args.target_width, args.target_layers, False
    folder = lottery_folder(given) / f"strong-{_digest(args)}"
    job = Job(
        args, RunFiles(folder), (), lambda result: write_csv(folder / "imitations.csv", result["imitations"]), console
    )
    return folder, job.do(lambda: _imitations(args, given, folder, console))


def _imitations(args: Namespace, given: Namespace, folder: Path, console: Console) -> dict[str, Any]:
    """Train the target and imitate it; the content of result.json."""
    datamodule = load_datamodule(args.datamodule)(given)
    branch = Branch(args.seed, "ticket", 0, folder / "target")
    trained = train(given, branch, datamodule, None, console)
    console.print(f"target: {trained['kept']:.0%} of the weights, test error {trained['test_error']:.2%}")
    datamodule.setup("fit")
    datamodule.setup("test")
    module, _ = chain_from_state(read_weights(branch.files.model))
    target = Target.of([kernel.matrix(module) for kernel in registered_kernels(module)], trained["input_norm"])
    train_set, test_set = (_samples(target, datamodule, part) for part in ("train", "test"))
    ball = _random_ball(target.sizes[0], args.seed)
    sizes: dict[Method, list[int]] = {"nearest": args.nearest_candidates, "subset_sum": args.subset_candidates}
    wanted = [
        (method, candidates, seed)
        for method in sizes
        for candidates in sorted(sizes[method])
        for seed in range(args.random_seeds)
    ]
    found: dict[tuple[str, int], tuple[Imitation, StrongTicket]] = {}
    imitations = []
    for method, candidates, seed in track(wanted, "pruning random networks", console=console, transient=True):
        imitation, ticket = imitate(target, candidates, method, seed, train_set, test_set, ball)
        imitations.append(imitation)
        if (method, seed) not in found and imitation.relative_error <= args.epsilon:
            found[method, seed] = imitation, ticket
    return {
        "epsilon": args.epsilon,
        "target": {
            "sizes": target.sizes,
            "weights": sum(weight.numel() for weight in target.weights),
            "log_scale": target.log_scale,
            "largest_output": float(train_set.outputs.norm(dim=1).max()),
            "smallest_margin": float(margins(train_set.outputs, train_set.targets).min()),
            "test_error": trained["test_error"],
            "n": len(train_set.inputs),
            "bounds": trained["bounds"],
        },
        "imitations": [asdict(imitation) for imitation in imitations],
        "single_weights": measure_single_weights(target, args.seed),
        "found": [
            {**asdict(imitation), **_bounds(ticket, train_set, imitation, args.delta)}
            for imitation, ticket in found.values()
        ],
    }


def _digest(args: Namespace) -> str:
    keys = ("target_width", "target_layers", "epsilon", "random_seeds", "nearest_candidates", "subset_candidates")
    relevant = [args.seed, *(getattr(args, key) for key in keys)]
    return hashlib.sha256(json.dumps(relevant).encode()).hexdigest()[:8]


def _samples(target: Target, datamodule: DataModule, part: str) -> Samples:
    samples = train_samples(datamodule) if part == "train" else test_samples(datamodule)
    assert samples is not None
    batches = list(samples.batches())
    inputs = torch.cat([inputs.flatten(1).double() for inputs, _ in batches]) / target.input_norm
    return Samples(inputs, torch.cat([targets for _, targets in batches]), target(inputs))


def _random_ball(dim: int, seed: int) -> Tensor:
    """(n, d_0) inputs uniform in the unit ball."""
    generator = np.random.default_rng(seed)
    normal = generator.standard_normal((_BALL_SAMPLES, dim))
    radius = generator.random((_BALL_SAMPLES, 1)) ** (1 / dim)
    return torch.from_numpy(normal / np.linalg.norm(normal, axis=1, keepdims=True) * radius)


def imitate(
    target: Target,
    candidates: int,
    method: Method,
    seed: int,
    train_set: Samples,
    test_set: Samples,
    ball: Tensor,
) -> tuple[Imitation, StrongTicket]:
    """Prune one random network, and measure what comes out as the network of 2L layers that it is."""
    started = time.perf_counter()
    ticket = find_ticket(target, candidates, method, seed)
    seconds = time.perf_counter() - started
    error = _largest_distance(ticket(train_set.inputs), train_set.outputs)
    found = ticket(test_set.inputs)
    imitation = Imitation(
        method=method,
        candidates=candidates,
        seed=seed,
        width=ticket.network.width,
        parameters=ticket.network.parameters,
        active=ticket.active_weights,
        train_error=error,
        relative_error=error / float(train_set.outputs.norm(dim=1).max()),
        random_error=_largest_distance(ticket(ball), target(ball)),
        ball_bound=ticket.ball_bound,
        agreement=float((found.argmax(dim=1) == test_set.outputs.argmax(dim=1)).double().mean()),
        test_error=error_rate(margins(found, test_set.targets)),
        seconds=seconds,
    )
    return imitation, ticket


def _largest_distance(first: Tensor, second: Tensor) -> float:
    return float((first - second).norm(dim=1).max())


def _bounds(ticket: StrongTicket, train_set: Samples, imitation: Imitation, delta: float) -> dict[str, Any]:
    """Theorem 6.2 with everything measured, and a bound that codes the mask and nothing else."""
    target, count = ticket.target, len(train_set.inputs)
    rounded = [discretize(weight, default_step(weight)) for weight in ticket.weights]
    outputs, coarse = ticket(train_set.inputs), train_set.inputs
    for weight in rounded[:-1]:
        coarse = (coarse @ weight.T).relu_()
    coarse = coarse @ rounded[-1].T
    theorem = ticket_bound(
        margins(train_set.outputs, train_set.targets),
        width=target.width,
        input_dim=target.sizes[0],
        depth=len(target.weights),
        ticket_width=ticket.network.width,
        epsilon=imitation.train_error,
        rounding=_largest_distance(coarse, outputs),
        alphabet=2 * 2**8 + 1,
        broken=broken_hypotheses(
            target.weights,
            spectral_norms=[float(spectral_norm(weight)) for weight in target.weights],
            input_norm=float(train_set.inputs.norm(dim=1).max()),
            epsilon=imitation.train_error,
            ticket_depth=2 * len(target.weights),
            bare=ticket.bare_layers,
            random=True,
        ),
    )
    # The decoder draws the same random network: it is told the sizes, the seed, how many survive and which.
    kept = [int(pair.kept.sum()) for pair in ticket.pairs]
    header = elias_gamma_length([len(target.sizes), *target.sizes, imitation.candidates, imitation.seed, *kept])
    bits = (header + log_mask_count(ticket)) / math.log(2)
    # Whether a sign of u is used is the construction's, as the blocks are; 64-bit arithmetic is the decoder's.
    error = error_rate(margins(outputs, train_set.targets))
    return {
        "theorem_6_2": asdict(theorem),
        "promised_log_width": log_ticket_width(target.width, len(target.weights), math.log(imitation.train_error)),
        "promised_active": target.width * target.sizes[0] + len(target.weights) * target.width**2,
        "mask_bits": bits,
        "mask_bound": occam_bound(error, bits, count, delta),
        "ticket_train_error": error,
    }


def measure_single_weights(target: Target, seed: int = 0) -> list[dict[str, Any]]:
    """How near one weight is met by m candidates with u > 0, as each way of choosing among them has it.

    For weights drawn from the target's, the error that 95% of them stay below.

    Returns:
        method ("boxed", "nearest" or "subset_sum"), candidates and error of each point.
    """
    generator = np.random.default_rng(seed)
    everything = torch.cat([weight.flatten() for weight in target.weights])
    weights = everything[torch.from_numpy(generator.integers(len(everything), size=_SINGLE_WEIGHTS))]
    most = 2**14
    incoming, outgoing = (
        torch.from_numpy(low + (1 - low) * generator.random((_SINGLE_WEIGHTS, most))) for low in (0.0, -1.0)
    )
    points = []
    for name, curve in (
        ("boxed", boxed_error(incoming, outgoing, weights)),
        ("nearest", nearest_error(incoming, outgoing, weights)),
    ):
        for power in range(2, 15):
            points.append((name, 2**power, curve[:, 2**power - 1]))
    for count in range(2, 23, 2):
        products = (incoming * outgoing)[:, :count]
        sums = (products * subset_sum(products, weights)).sum(dim=1)
        points.append(("subset_sum", count, (sums - weights).abs()))
    return [
        {"method": method, "candidates": count, "error": float(torch.quantile(errors, _COVERED))}
        for method, count, errors in points
    ]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the least-squares line through (x, y)."""
    return statistics.linear_regression(*zip(*points, strict=True)).slope if len(points) > 1 else math.nan


def growth(single_weights: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """How the candidates needed grow: d ln m / d ln(1/ε), and for subset sums dm / d ln(1/ε)."""
    found = {}
    for method in ("boxed", "nearest", "subset_sum"):
        # Where few candidates do no better than none, or rounding shows, there is no rate.
        points = [
            p for p in single_weights if p["method"] == method and 1e-13 < p["error"] < 0.1 * (1 + (method == "boxed"))
        ]
        size = (lambda m: m) if method == "subset_sum" else math.log
        found[method] = slope([(-math.log(p["error"]), size(p["candidates"])) for p in points])
    return found


def strong_table(result: Mapping[str, Any]) -> Fitted:
    """The smallest random networks that imitate the target well enough."""
    title = (
        f"Found by pruning alone: a {'-'.join(map(str, result['target']['sizes']))} target within "
        f"{result['epsilon']:g} of its largest output"
    )
    heads = ["chosen by", "candidates", "width", "survivors", "error", "proved", "6.2, ln", "mask"]
    largest = result["target"]["largest_output"]
    rows = [
        [
            "nearest" if row["method"] == "nearest" else "subset sum",
            f"{row['candidates']:,}",
            f"{row['width']:,}",
            f"{row['active']:,}",
            *(f"{row[key] / largest:.1e}" for key in ("train_error", "ball_bound")),
            f"{row['theorem_6_2']['log_value']:.2f}",
            f"{row['mask_bound']:.3f}",
        ]
        for row in result["found"]
    ]
    return Fitted(heads, rows, heads[1:], title=title, spare=["mask", "6.2, ln", "width"], elsewhere="result.json")
