"""Notes on a table, computed from its numbers."""

import math
import statistics
from collections.abc import Iterator

from milkshake_mbp.reporting.tables.comparison import Comparison
from milkshake_mbp.reporting.tables.paper import NORMS, OURS, PROBLEMS, layer_shapes
from milkshake_mbp.reporting.tables.runs import log_unpruned

__all__ = ["notes"]

_OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}


def notes(comparison: Comparison) -> list[str]:
    """The notes that a reader of the table needs."""
    found = []
    if any(len(runs) > 1 for runs in comparison.runs.values()):
        found.append("Here: the median over the seeds. Range: the smallest and the largest.")
    found += _recipes(comparison)
    found.append(
        "Only Theorem 5.2 bounds an error; the norm-based rows are squared complexities without the input norm and 1/n."
    )
    if any(math.inf in entry.values for entry in comparison.entries.values()):
        found.append("∞: a training sample is misclassified, so the margin that the row divides by is not positive.")
    if comparison.has_paper:
        found += _unpruned(comparison)
        found += _implied_margins(comparison)
    if comparison.datamodule == "cifar10":
        found += _cifar10(comparison)
    return found


def _recipes(comparison: Comparison) -> Iterator[str]:
    recipes: dict[str, list[int]] = {}
    for width, runs in comparison.runs.items():
        for run in runs[:1]:
            config = run.config
            momentum = f", momentum {config['momentum']:g}" if config["optimizer"] == "sgd" else ""
            steps = (
                f"{_OPTIMIZERS[config['optimizer']]}{momentum}, learning rate {config['lr']:g}, weight decay "
                f"{config['weight_decay']:g}, batch {config['batch_size']}, {config['max_epochs']} epochs"
            )
            if config.get("precision"):
                steps += f", precision {config['precision']}"
            recipes.setdefault(steps, []).append(width)
    for steps, widths in recipes.items():
        where = f"Width {', '.join(map(str, widths))}: " if len(recipes) > 1 else "Trained with "
        yield f"{where}{steps}."
    if recipes and comparison.has_paper:
        yield "The paper's text states Adam at learning rate 0.02 for 300 epochs, which stays at chance on MNIST."


def _unpruned(comparison: Comparison) -> Iterator[str]:
    """How far Theorem 5.2's rows are from pruning nothing."""
    ours, unpruned = comparison.row(OURS), comparison.row("unpruned")
    printed = [abs(e.paper - u.values[0]) for e, u in zip(ours, unpruned, strict=True) if e.paper and u.values]
    here = [abs(e.median - u.values[0]) for e, u in zip(ours, unpruned, strict=True) if e.median is not None]
    text = (
        "With nothing pruned and no margin violated, Theorem 5.2 is ln √(Σ N_l ln² p_l / n). The paper's row is within "
        f"{max(printed):.2f} of this value"
    )
    yield f"{text}, the row here within {max(here):.3f}." if here else f"{text}."


def _implied_margins(comparison: Comparison) -> Iterator[str]:
    """What the norm rows' differences have in common, as the margin that all of them divide by, squared."""
    implied, left = {}, [0.0]
    for width in comparison.widths:
        margin = comparison.entries["margin", width].median
        found = [comparison.entries[name, width].difference for name in NORMS]
        differences = [value for value in found if value is not None and math.isfinite(value)]
        if margin is not None and len(differences) == len(NORMS):
            shift = statistics.mean(differences)
            implied[width] = margin * math.exp(shift / 2)
            left += [abs(value - shift) for value in differences]
    if implied:
        margins = ", ".join(f"{margin:#.2g} at width {width}" for width, margin in implied.items())
        yield (
            "All norm-based rows divide by the square of the smallest margin, which is that of a single sample. If it "
            f"were {margins} in the paper's networks, every norm-based row here would be within {max(left):.2f} of the "
            "paper's."
        )


def _cifar10(comparison: Comparison) -> Iterator[str]:
    num_samples = PROBLEMS["cifar10"].num_samples
    for width in comparison.widths:
        runs, entry = comparison.runs[width], comparison.entries[OURS, width]
        n = runs[0].result["n"] if runs and runs[0].result else num_samples
        shapes = layer_shapes("cifar10", width)
        ceiling, held_out = (math.log1p(math.exp(log_unpruned(shapes, of))) for of in (n, num_samples * 4 // 5))
        if entry.paper is not None:
            yield (
                f"The formula cannot exceed ln(1 + √(Σ N_l ln² p_l / n)) = {ceiling:.2f} at width {width} with "
                f"n = {n:,}, for any pruning and any margins ({held_out:.2f} with a fifth of the samples held out), so "
                f"the paper's {entry.paper:.2f} is not a value of the formula at this width."
            )
        error = comparison.entries["true_error", width]
        if error.paper is not None:
            here = "" if error.median is None else f"; here it is {math.exp(error.median):.1%}"
            yield (
                f"The paper's true error is {math.exp(error.paper):.1%} of the test set, far below the error of fully "
                f"connected networks{here}."
            )
    used = {run.config["batch_size"] for runs in comparison.runs.values() for run in runs}
    batches = f"; the batch size here is {', '.join(map(str, sorted(used)))}" if used else ""
    yield f"With the authors' batch size of 4, an epoch has {num_samples // 4:,} steps{batches}."
