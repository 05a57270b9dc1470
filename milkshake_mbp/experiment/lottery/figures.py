"""The lottery's figures, from its result files."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from torch import Tensor

from milkshake_mbp.experiment.lottery.rounds import TICKET, crowding
from milkshake_mbp.experiment.lottery.strong import growth
from milkshake_mbp.framework.checkpoints import read_weights
from milkshake_mbp.reporting.figures import COLOURS, MARKERS, save_figure, scale_share
from milkshake_mbp.reporting.words import show_tick
from milkshake_mbp.runs.files import RunFiles, check_kept
from milkshake_mbp.theory.strong_ticket import promised_candidates, promised_subset_candidates

__all__ = ["BOUNDS", "BRANCHES", "CHOICES", "bound_of", "draw_rounds", "draw_strong"]

Results = Sequence[Mapping[str, Any]]

BRANCHES = {TICKET: "ticket", "random_mask": "random mask, same layers", "reinit": "ticket's mask, other weights"}
# Of the ladder, those that pruning moves or that a ticket is for.
BOUNDS = {
    "leading/theorem_5_2": "Theorem 5.2, d = 0",
    "leading/theorem_5_2_measured": "Theorem 5.2, measured spread",
    "leading/theorem_6_2": "Theorem 6.2, its own D_G",
    "leading/theorem_6_2_measured": "Theorem 6.2, all measured",
    "leading/dense": "plain float counting",
    "leading/naive": "naive counting, leading",
    "rigorous/naive": "naive counting, proved",
}
CHOICES = {
    "boxed": "u near 1 and v near w (Malach's proof)",
    "nearest": "the nearest v·u",
    "subset_sum": "the best subset (Pensia)",
}


def draw_rounds(results: Results, folder: Path) -> list[Path]:
    """Accuracy, bounds, places of the survivors and memory, as PDF and PNG.

    Args:
        results: every training's result.json.
        folder: of the experiment; figures go to its folder of that name.

    Raises:
        UserError: a training's folder was removed after it had finished.
    """
    tickets = [result for result in results if result["branch"] == TICKET]
    first = [result for result in tickets if result["seed"] == tickets[0]["seed"]]
    masks = _first_masks(first, folder)
    drawn = {"accuracy": _draw_accuracy(results), "bounds": _draw_bounds(first), "memory": _draw_memory(results)}
    if all(mask.ndim == 2 and math.isqrt(mask.shape[1]) ** 2 == mask.shape[1] for mask in masks.values()):
        drawn["pixels"] = _draw_pixels(masks, first)
    else:
        drawn["crowding"] = _draw_pixels({}, first)
    paths = [path for name, figure in drawn.items() for path in save_figure(figure, folder / "figures" / name, dpi=110)]
    check_kept(_files(result, folder) for result in results)
    return paths


def _files(result: Mapping[str, Any], folder: Path) -> RunFiles:
    """Of one training."""
    return RunFiles(folder / f"seed-{result['seed']}" / f"{result['branch']}-{result['round']:02d}")


def _first_masks(tickets: Results, folder: Path) -> dict[int, Tensor]:
    """The first layer's masks of the first seed, by round."""
    found = {}
    for result in tickets:
        name, masks = result["layers"][0]["name"], read_weights(_files(result, folder).mask)
        found[result["round"]] = next(mask.bool() for key, mask in masks.items() if key in (name, f"{name}.weight"))
    return found


def _draw_accuracy(results: Results) -> Figure:
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axis = figure.subplots()
    for index, branch in enumerate(dict.fromkeys(result["branch"] for result in results)):
        there = [result for result in results if result["branch"] == branch]
        kept, means, low, high = [], [], [], []
        for turn in sorted({result["round"] for result in there}):
            group = [result for result in there if result["round"] == turn]
            accuracies = [1 - result["test_error"] for result in group]
            kept.append(sum(result["kept"] for result in group) / len(group))
            means.append(sum(accuracies) / len(accuracies))
            low.append(min(accuracies))
            high.append(max(accuracies))
        style: Any = {"color": COLOURS[index], "marker": MARKERS[index], "markersize": 4}
        axis.plot(kept, means, label=BRANCHES.get(branch, branch), **style)
        axis.vlines(kept, low, high, color=COLOURS[index], alpha=0.5)
        if branch == TICKET:
            axis.axhline(means[0], color="grey", linewidth=0.8, linestyle="--")
    seeds = len({result["seed"] for result in results})
    axis.set(
        xlabel="weights left",
        ylabel="test accuracy",
        title=f"Mean and range of {seeds} seeds; dashed: the dense network"
        if seeds > 1
        else "Dashed: the dense network",
    )
    axis.yaxis.set_major_formatter(FuncFormatter(show_tick))
    _downwards(axis)
    axis.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def _draw_bounds(tickets: Results) -> Figure:
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axis = figure.subplots()
    kept = [result["kept"] for result in tickets]
    for index, (name, label) in enumerate(BOUNDS.items()):
        values = [bound_of(result, name) for result in tickets]
        if not all(map(math.isnan, values)):
            axis.plot(kept, values, label=label, color=COLOURS[index], marker=MARKERS[index], markersize=4)
    errors = [math.log(max(result["test_error"], 1e-9)) for result in tickets]
    axis.plot(kept, errors, label="test error", color="grey", linestyle=":")
    axis.axhline(0, color="grey", linewidth=0.8, linestyle="--")
    axis.set(
        xlabel="weights left",
        ylabel="natural log",
        title="Bounds on the ticket's error; dashed: 100%",
    )
    _downwards(axis)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def bound_of(result: Mapping[str, Any], name: str) -> float:
    """A natural log of a ticket's ladder, by the names in `BOUNDS`; NaN if it is infinite or not there."""
    if name == "leading/theorem_6_2_measured":
        return float(result.get("theorem_6_2", {}).get("log_value", math.nan))
    found = {f"{bound['convention']}/{bound['name']}": bound["log_value"] for bound in result["bounds"]}
    value = found.get(name, math.nan)
    return value if math.isfinite(value) else math.nan


def _draw_memory(results: Results) -> Figure:
    figure = Figure(figsize=(6, 3), layout="constrained")
    axis = figure.subplots()
    axis.plot([result["peak_memory_mib"] or math.nan for result in results], color=COLOURS[0], marker="o", markersize=3)
    axis.set(xlabel="trainings, in order", ylabel="peak resident memory, MiB", ylim=(0, None))
    axis.grid(alpha=0.25)
    return figure


def _draw_pixels(masks: Mapping[int, Tensor], tickets: Results) -> Figure:
    """Survivors by input pixel in some rounds, where there are masks of pixels, and their crowding beside Lemma 5.1."""
    turns = sorted(masks)
    shown = sorted({turns[round(place * (len(turns) - 1))] for place in (1 / 3, 2 / 3, 1)}) if turns else []
    figure = Figure(figsize=(3 * (len(shown) + 1.4), 3.2), layout="constrained")
    (axes,) = figure.subplots(1, len(shown) + 1, width_ratios=[*(1 for _ in shown), 1.4], squeeze=False)
    for axis, turn in zip(axes, shown, strict=False):
        side = math.isqrt(masks[turn].shape[1])
        counts = masks[turn].sum(dim=0).reshape(side, side)
        image = axis.imshow(counts.numpy(), cmap="viridis", vmin=0)
        empty = float((counts == 0).double().mean())
        left = float(masks[turn].double().mean())
        axis.set(title=f"round {turn}: {left:.1%} of layer 0\n{empty:.0%} of the pixels unused", xticks=[], yticks=[])
        figure.colorbar(image, ax=axis, shrink=0.8)
    axis = axes[-1]
    kept = [result["kept"] for result in tickets]
    for index in range(len(tickets[0]["layers"])):
        ratios = [crowding(result["layers"][index]) for result in tickets]
        axis.plot(
            kept, ratios, label=f"layer {index}", color=COLOURS[index % 7], marker=MARKERS[index % 7], markersize=4
        )
    axis.axhline(1, color="grey", linewidth=0.8, linestyle="--")
    axis.set(xlabel="weights left", title="max(j_r, j_c) over Lemma 5.1's 3χp")
    _downwards(axis)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw_strong(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Error against candidates per weight, for single weights and for whole networks, with both predicted rates."""
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    single, whole = figure.subplots(1, 2)
    _draw_single(single, result["single_weights"])
    _draw_whole(whole, result)
    for axis in (single, whole):
        axis.set(xscale="log", yscale="log")
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    return save_figure(figure, folder / "strong", dpi=110)


def _draw_single(axis: Axes, points: Sequence[Mapping[str, Any]]) -> None:
    rates = growth(points)
    for index, (method, label) in enumerate(CHOICES.items()):
        curve = [(point["candidates"], point["error"]) for point in points if point["method"] == method]
        rate = f"m = {rates[method]:.2g} ln 1/ε" if method == "subset_sum" else f"m ~ (1/ε)^{rates[method]:.2f}"
        axis.plot(
            *zip(*curve, strict=True),
            color=COLOURS[index],
            marker=MARKERS[index],
            markersize=3,
            label=f"{label}: {rate}",
        )
    sizes = torch.logspace(0.5, 5, 50).tolist()
    # ε at which the promise is m, both at δ = 0.05; of the first, ε is the box's.
    malach = [math.sqrt(promised_candidates(1.0, 0.05) / size) for size in sizes]
    axis.plot(sizes, malach, color=COLOURS[0], linestyle=":", label="promised: 4/ε² ln 2/δ")
    pensia = torch.logspace(-13, -1.3, 50).tolist()
    promised = [promised_subset_candidates(epsilon, 0.05) for epsilon in pensia]
    axis.plot(promised, pensia, color=COLOURS[2], linestyle=":", label="promised: ln 2/min(ε, δ), its constant 1")
    axis.set(title="One weight, 95% of the target's", xlabel="candidates m with u > 0", ylabel="error", ylim=(1e-10, 2))


def _draw_whole(axis: Axes, result: Mapping[str, Any]) -> None:
    for index, method in enumerate(("nearest", "subset_sum"), start=1):
        for key, style in (("relative_error", "-"), ("ball_bound", "--")):
            means = []
            there = [row for row in result["imitations"] if row["method"] == method]
            for size in sorted({row["candidates"] for row in there}):
                values = [row[key] for row in there if row["candidates"] == size]
                scale = result["target"]["largest_output"] if key == "ball_bound" else 1.0
                means.append((size, math.exp(sum(map(math.log, values)) / len(values)) / scale))
            what = "on the training set" if key == "relative_error" else "proved on the ball"
            axis.plot(
                *zip(*means, strict=True),
                color=COLOURS[index],
                linestyle=style,
                marker=MARKERS[index],
                markersize=3,
                label=f"{CHOICES[method]}, {what}",
            )
    axis.axhline(result["epsilon"], color="grey", linewidth=0.8)
    sizes = "-".join(map(str, result["target"]["sizes"]))
    axis.set(title=f"A {sizes} network", xlabel="candidates for each input", ylabel="error / target's largest output")


def _downwards(axis: Axes) -> None:
    """Shares of weights left from the dense network at the left."""
    axis.set_xscale("log")
    scale_share(axis, "x")
    axis.invert_xaxis()
