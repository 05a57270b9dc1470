"""The page of a lottery: errors of the tickets and their controls, bounds, and the tickets' distributed sparsity."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from milkshake_mbp.experiment.lottery.figures import BOUNDS, BRANCHES, CHOICES, bound_of
from milkshake_mbp.experiment.lottery.rounds import TICKET, crowding, rounds_table, summarize_rounds
from milkshake_mbp.experiment.lottery.strong import STRONG_NOTES, strong_table
from milkshake_mbp.reporting.report.charts import Curve, plot
from milkshake_mbp.reporting.report.markup import Markup, cards, fold, table, tag
from milkshake_mbp.reporting.report.page import architecture, environment, header, write_page
from milkshake_mbp.reporting.words import show, show_log, show_percent, show_tick
from milkshake_mbp.runs.stored import StoredRun, read_run

__all__ = ["write_rounds_report", "write_strong_report"]

Results = Sequence[Mapping[str, Any]]
_SHARE: dict[str, Any] = {"show": show_percent, "show_tick": show_tick}


def write_rounds_report(results: Results, folder: Path) -> Path:
    """Write report.html into the folder of a lottery's rounds.

    Args:
        results: every training's result.json, as `run_rounds` gives them.
        folder: of the experiment.

    Returns:
        The file written.
    """
    dense = next(result for result in results if result["branch"] == TICKET)
    run = read_run(folder / f"seed-{dense['seed']}" / f"{TICKET}-{dense['round']:02d}")
    last = max(result["round"] for result in results)
    title = f"{run.config.get('datamodule', folder.name)}: lottery tickets over {last} rounds"
    return write_page(folder / "report.html", title, _rounds(results, folder, run, title))


def _rounds(results: Results, folder: Path, run: StoredRun, title: str) -> Iterator[Markup]:
    lines, config = summarize_rounds(results), run.config
    seeds = list(dict.fromkeys(result["seed"] for result in results))
    tickets = [result for result in results if result["branch"] == TICKET]
    yield header(title, folder.name)
    yield tag(
        "p",
        f"{architecture(config)} pruned in rounds. Each round prunes {show(config.get('prune_rate'), '{:.0%}')} of the "
        f"remaining weights by magnitude, resets the others to their values {_rewound(config)}, and trains them again. "
        f"{len(seeds)} seed{'s' * (len(seeds) > 1)}, {len(results)} trainings.",
        class_="lead",
    )
    yield _headline(lines)
    yield tag("h2", "Round by round")
    rounds = rounds_table(lines, results)
    notes = (
        "Over dense: difference from the unpruned network, in percentage points. j / 3χp: the largest number of "
        "nonzeros in a row or column over Lemma 5.1's prediction, the maximum of all layers; above 1 the lemma fails. "
        "Sketched: layers that a certified sketch determines."
    )
    yield table(rounds.title, rounds.heads, rounds.texts, rounds.heads[1:], tag("p", notes, class_="mute"))
    yield tag("h2", "Against the weights left")
    yield tag("div", *_charts(results, [t for t in tickets if t["seed"] == seeds[0]]), class_="charts")
    yield fold("Every training", _trainings(results))
    yield tag("h2", "How to repeat this experiment")
    yield from environment(run, "lottery", f"--seeds {' '.join(map(str, seeds))}")


def _rewound(config: Mapping[str, Any]) -> str:
    steps = config.get("rewind_steps")
    return f"after {show(steps)} steps of training" if steps else "before training"


def _headline(lines: Results) -> Markup:
    """The dense network, the best ticket, and the sparsest that is no worse than dense, with its controls."""
    dense = lines[0]["test_error"][TICKET]
    pruned = [line for line in lines if line["round"] > 0]
    entries = [("Dense", show_percent(dense), "test error of the unpruned network")]
    if pruned:
        best = min(pruned, key=lambda line: line["test_error"][TICKET])
        entries.append(("Best ticket", show_percent(best["test_error"][TICKET]), _where(best)))
    if good := [line for line in pruned if line["test_error"][TICKET] <= dense]:
        sparsest = min(good, key=lambda line: line["kept"])
        entries.append(("Sparsest no worse than dense", show_percent(sparsest["kept"]), _where(sparsest)))
        entries += [
            (BRANCHES.get(branch, branch).capitalize(), show_percent(error), "test error in this round")
            for branch, error in sparsest["test_error"].items()
            if branch != TICKET
        ]
    return cards(*entries)


def _where(line: Mapping[str, Any]) -> str:
    return f"round {line['round']}, with {show_percent(line['kept'])} of the weights"


def _charts(results: Results, first: Results) -> Iterator[Markup | None]:
    """Errors of all seeds; bounds and crowding of the first seed's tickets."""
    kept = {
        turn: statistics.fmean(r["kept"] for r in results if r["round"] == turn and r["branch"] == TICKET)
        for turn in {result["round"] for result in results}
    }
    # At equal distances, as on a log axis; from the dense network to the sparsest.
    axis: dict[str, Any] = {
        "x_label": "weights left",
        "show_x": lambda turn: show_percent(kept[turn], 1) if turn in kept else "",
    }
    branches = dict.fromkeys(result["branch"] for result in results)
    errors = [
        Curve(BRANCHES.get(branch, branch), [r["test_error"] if r["branch"] == branch else math.nan for r in results])
        for branch in branches
    ]
    x = [result["round"] for result in results]
    yield plot("Test error", x, errors, y_label="share of the test set", **_SHARE, **axis)
    x = [result["round"] for result in first]
    bounds = [Curve(label, [bound_of(result, name) for result in first]) for name, label in BOUNDS.items()]
    errors = [Curve("test error", [math.log(max(result["test_error"], 1e-9)) for result in first])]
    known = [curve for curve in bounds if not all(map(math.isnan, curve.values))]
    lines = {0.0: "an error of 100%"}
    yield plot(
        "Bounds on the ticket's error", x, [*known, *errors], y_label="natural log", show=show_log, lines=lines, **axis
    )
    layers = [
        Curve(layer["name"], [crowding(result["layers"][index]) for result in first])
        for index, layer in enumerate(first[0]["layers"])
    ]
    label = "largest number of nonzeros in a row or column, over Lemma 5.1's 3χp"
    yield plot("Crowding", x, layers, y_label=label, show="{:.2f}".format, lines={1.0: "Lemma 5.1"}, **axis)


def _trainings(results: Results) -> Markup:
    heads = ["training", "left", "test error", "margin"]
    rows = [
        [
            f"seed {result['seed']}, {BRANCHES.get(result['branch'], result['branch'])}, round {result['round']}",
            show_percent(result["kept"]),
            show_percent(result["test_error"]),
            show(result["margin"]) if "margin" in result else "",
        ]
        for result in results
    ]
    return table("Every training", heads, rows, heads[1:])


def write_strong_report(result: Mapping[str, Any], folder: Path) -> Path:
    """Write report.html into the folder of a search for strong tickets, of which `result` is the result.json."""
    sizes = "-".join(map(str, result["target"]["sizes"]))
    return write_page(
        folder / "report.html", f"A {sizes} network found by pruning alone", _strong(result, folder, sizes)
    )


def _strong(result: Mapping[str, Any], folder: Path, sizes: str) -> Iterator[Markup | None]:
    target = result["target"]
    yield header(f"A {sizes} network found by pruning alone", folder.name)
    lead = (
        "Random networks of twice the depth, pruned but never trained, approximate a trained target network of "
        f"{target['weights']:,} weights (Theorem 6.1). The required distance of the outputs is {result['epsilon']:g} "
        "times the target's largest output."
    )
    yield tag("p", lead, class_="lead")
    smallest = min(result["found"], key=lambda row: row["active"], default=None)
    yield cards(
        ("Target", show_percent(target["test_error"]), "test error"),
        ("Found", f"{len(result['found'])}", f"of {len(result['imitations'])} pruned networks are close enough"),
        *(
            [
                ("Smallest", f"{smallest['active']:,}", "remaining weights"),
                ("Its test error", show_percent(smallest["test_error"]), "without training"),
            ]
            if smallest
            else []
        ),
    )
    found = strong_table(result)
    yield table(found.title, found.heads, found.texts, found.heads[1:], tag("p", STRONG_NOTES, class_="mute"))
    rows = [row for row in result["imitations"] if row["relative_error"] > 0]
    curves = [
        Curve(label, [row["relative_error"] if row["method"] == method else math.nan for row in rows])
        for method, label in CHOICES.items()
        if any(row["method"] == method for row in rows)
    ]
    yield plot(
        "Error of the approximation",
        [row["candidates"] for row in rows],
        curves,
        x_label="candidates for each input, log axis",
        y_label="largest distance on the training set, over the target's largest output, log axis",
        show="{:.1e}".format,
        show_tick="{:.0e}".format,
        log=True,
        log_x=True,
        lines={result["epsilon"]: "required"},
    )
