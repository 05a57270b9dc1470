"""The report of a run or of several: one web page, with no network, and JavaScript for hover and toggles alone."""

import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from string import Template
from typing import Any

from milkshake_mbp.commands import called, installed
from milkshake_mbp.errors import UserError
from milkshake_mbp.files import write_atomically
from milkshake_mbp.framework.settings import SIZES
from milkshake_mbp.reporting.figures import COLOURS
from milkshake_mbp.reporting.ladder import bounds_of, error_bounds, telling
from milkshake_mbp.reporting.report.curves import as_row, draw_curves
from milkshake_mbp.reporting.report.ladder import ladder
from milkshake_mbp.reporting.report.layers import layer_tables
from milkshake_mbp.reporting.report.markup import Markup, cards, fold, table, tag
from milkshake_mbp.reporting.words import at_most, duration, show, show_log, show_percent, show_strength
from milkshake_mbp.runs.stored import StoredRun, read_run

__all__ = ["architecture", "environment", "header", "quoted", "write_page", "write_report"]

_PAGE = Path(__file__).with_name("page.html")
_SEEDS = {"seed", "prune_seed"}
# Where a run's files are says nothing about the run.
_PLACES = {"out_dir", "data_dir", "wandb_dir"}


def write_report(folders: Sequence[Path], target: Path) -> Path:
    """Write a report that shows one run, or compares several.

    Args:
        folders: of runs, finished or not, as `experiment.run` or `experiment.evaluate` left them.
        target: the HTML file.

    Returns:
        The file written.

    Raises:
        UserError: no folder is given, or one holds no run.
    """
    if not folders:
        raise UserError("a report needs the folder of at least one run")
    runs = [_readable(read_run(Path(folder))) for folder in folders]
    title, body = _one(runs[0]) if len(runs) == 1 else _several(runs)
    return write_page(target, title, body)


def _readable(run: StoredRun) -> StoredRun:
    """The run, without a result that lacks what a page shows."""
    if run.result is None or "num_classes" in run.result:
        return run
    problem = "result.json does not give the number of classes: it is from another version, and is not shown."
    return replace(run, result=None, problem=problem)


def write_page(target: Path, title: str, body: Iterable[Markup | None]) -> Path:
    """Write a page in the look of a report, and give the file back; None in the body is left out."""
    colours = "".join(f".c{index}{{--c:{colour}}}" for index, colour in enumerate(COLOURS) if colour != "#000000")
    page = Template(_PAGE.read_text(encoding="utf-8"))
    text = page.substitute(title=tag("title", title), colours=colours, body=Markup("".join(filter(None, body))))
    write_atomically(target, text.encode())
    return target


def header(title: str, *names: str, lead: str = "") -> Markup:
    """The head of a page: its title, what it is about in a sentence, and names as they are in files."""
    return tag(
        "header", tag("h1", title), tag("p", lead) if lead else None, *(tag("p", name, class_="name") for name in names)
    )


def _one(run: StoredRun) -> tuple[str, list[Markup]]:
    title = _title(run)
    return title, [header(title, run.name), *_run(run, "h2")]


def _several(runs: Sequence[StoredRun]) -> tuple[str, list[Markup]]:
    axes = _axes(runs)
    runs = sorted(runs, key=lambda run: [_order(run.config.get(key)) for key in axes])
    finished = [run for run in runs if run.result is not None]
    title = f"{len(runs)} runs" + (f" over {' and '.join(axes)}" if 0 < len(axes) < 4 else "")
    ranges = [f"{key}: {', '.join(dict.fromkeys(str(run.config.get(key, '–')) for run in runs))}" for key in axes]
    body = [
        header(
            title,
            *ranges,
            lead=f"{'All' if len(finished) == len(runs) else f'{len(finished)} of {len(runs)}'} are finished.",
        ),
        tag("h2", "Overview"),
        _overview(runs, axes),
    ]
    for key in _numeric(runs, axes):
        rows = [{key: float(run.config[key]), **as_row(run.facts)} for run in finished]
        if len({row[key] for row in rows}) > 1:
            body += [tag("h2", f"Against {key}"), *draw_curves(rows, key)]
    body.append(tag("h2", "Each run"))
    for number, run in enumerate(runs, 1):
        heading = tag("h3", _title(run), "" if run.result is not None else " (unfinished)")
        name = tag("p", run.name, class_="name")
        body.append(fold(heading, name, *_run(run, "h4"), id=f"run-{number}", class_="run"))
    return title, body


def _axes(runs: Sequence[StoredRun]) -> list[str]:
    """The keys in which the runs differ, as far as their configurations are known."""
    configs = [run.config for run in runs if run.config]
    keys = dict.fromkeys(key for config in configs for key in config if key not in _PLACES)
    return [key for key in keys if any(config.get(key) != configs[0].get(key) for config in configs)]


def _order(value: Any) -> tuple[bool, float, str]:
    """Numbers by size, then all else by its name."""
    return (False, value, "") if isinstance(value, (int, float)) else (True, 0.0, str(value))


def _numeric(runs: Sequence[StoredRun], axes: Sequence[str]) -> list[str]:
    """The axes that are numbers in every run and no seeds."""
    kinds = {key: {type(run.config.get(key)) for run in runs} for key in axes if key not in _SEEDS}
    return [key for key, kind in kinds.items() if kind <= {int, float}]


def _overview(runs: Sequence[StoredRun], axes: Sequence[str]) -> Markup:
    measured = [
        "test error",
        "pruned",
        "margin",
        "searched d",
        "sparsity",
        "Theorem 5.2, ln",
        "like for like, ln",
        "proved",
    ]
    rows = []
    for number, run in enumerate(runs, 1):
        facts, error, prune = run.facts, run.facts.get("test_error") or {}, run.facts.get("prune") or {}
        cells = [tag("a", run.name, href=f"#run-{number}"), *(str(run.config.get(key, "–")) for key in axes)]
        if run.result is None:
            rows.append([*cells, "unfinished", *["–"] * (len(measured) - 1)])
            continue
        leading = [bound["log_value"] for bound in bounds_of(facts, "leading")]
        theorem = [bound["log_value"] for bound in bounds_of(facts, "paper") if bound["name"] == "theorem_5_2"]
        proved = [bound["log_value"] for bound in telling(bounds_of(facts, "rigorous"))]
        cells += [
            show_percent(error.get("unpruned")),
            show_percent(error.get("pruned")),
            show(facts.get("margin")),
            "–" if facts.get("d") is None else show_strength(facts["d"]),
            show_percent(prune.get("sparsity"), 1),
            *(show_log(min(values)) if values else "–" for values in (theorem, leading)),
            f"≤ {at_most(math.exp(min(proved)))}" if proved else "vacuous",
        ]
        rows.append(cells)
    notes = (
        "Theorem 5.2: as the paper's tables compute it. Like for like: the smallest published bound, with hidden "
        "constants set to 1. Proved: the smallest bound without hidden constants, as an error."
    )
    numbers = [*axes, *measured]
    return table("Headline numbers", ["run", *numbers], rows, numbers, tag("p", notes, class_="mute"))


def _run(run: StoredRun, heading: str) -> Iterator[Markup]:
    """One run's sections, under headings of that level."""
    yield tag("p", _sentence(run), class_="lead")
    if run.problem:
        yield tag("p", run.problem, class_="problem")
    if run.result is not None:
        yield _headline(run.result)
        yield tag(heading, "Bounds on the test error")
        yield from ladder(run.result, f"h{int(heading[1]) + 1}")
        yield from layer_tables(run.result, heading)
    measured = [row for row in run.rows if "margin" in row]
    if measured:
        yield tag(heading, "During training")
        yield from draw_curves([{**row, "epoch": row["epoch"] + 1} for row in measured], "epoch")
    elif run.result is not None:
        yield tag("p", "There are no curves, because there is no epochs.csv with a measured epoch.", class_="mute")
    yield tag(heading, "How to repeat this run")
    yield from environment(run, *(["ladder"] if "weights" in run.facts else ["mbp", "--rerun true"]))


def _title(run: StoredRun) -> str:
    config = run.config
    if "datamodule" not in config:
        return str(run.facts.get("run") or run.name)
    if "weights" in run.facts:
        return f"{config['datamodule']}: {Path(str(run.facts['weights'])).name}"
    return f"{config['datamodule']}, {_network(config)}seed {config.get('seed', '–')}"


def _network(config: Mapping[str, Any]) -> str:
    """The model by its size, if a configuration tells."""
    model = config.get("model", "")
    size = config.get(SIZES.get(model, ""))
    if size is None:
        return f"{model}, " if model and model != "ffn" else ""
    return f"width {size}, " if model == "ffn" else f"{model} {size}, "


def _sentence(run: StoredRun) -> str:
    config, facts = run.config, run.facts
    if "weights" in facts:
        start = f"The network in {facts['weights']}, on {config.get('datamodule', 'an unknown dataset')}"
    elif not config:
        start = "A run without config.yaml"
    else:
        start = f"{architecture(config)} trained on {config.get('datamodule')}"
        start += f" for {facts.get('epochs', config.get('max_epochs'))} epochs"
        start += f" with {config.get('optimizer')} at learning rate {config.get('lr')}, seed {config.get('seed')}"
    parts = [start]
    if "n" in facts:
        parts.append(f"Measured on {facts['n']:,} training samples of {facts['num_classes']} classes")
    if "seconds" in facts:
        parts.append(f"It took {duration(facts['seconds'])}")
    return ". ".join(parts) + "."


def architecture(config: Mapping[str, Any]) -> str:
    """The network of a configuration in words, as the start of a sentence."""
    model = config.get("model")
    if model == "resnet":
        return f"ResNet-{config.get('resnet_version')}"
    if model in ("vit", "swin"):
        return f"A {config.get(f'{model}_version')} {'vision' if model == 'vit' else 'Swin'} transformer"
    if model not in ("ffn", "cnn", "nin"):
        return f"The network {model}"
    biases = "" if config.get("bias") else " without biases"
    if model == "cnn":
        normalized = " and with batch normalization" if config.get("cnn_batchnorm") else ""
        widths = (
            f"of {config.get('cnn_num_layers')} layers with {config.get('cnn_initial_width')} channels in the first"
        )
        return f"A convolutional network {widths},{biases}{normalized},"
    if model == "nin":
        return (
            f"A network in network of {config.get('nin_num_layers')} blocks of width {config.get('nin_width')}{biases},"
        )
    layers, width = config.get("ffn_num_layers"), config.get("ffn_hidden_dim")
    activation = str(config.get("ffn_activation")).replace("relu", "ReLU")
    return f"A {activation} network of {layers} layers of width {width}{biases},"


def _headline(result: Mapping[str, Any]) -> Markup:
    error, prune, bounds = result.get("test_error") or {}, result.get("prune") or {}, error_bounds(result)
    margin = result.get("margin")
    d, error_there = result.get("d"), result.get("true_error")
    positive = isinstance(margin, float) and margin > 0
    pruned = [
        ("Pruned", show_percent(error.get("pruned")), f"at d = {show_strength(result.get('prune_d'))}"),
        ("Sparsity", show_percent(prune.get("sparsity"), 1), "of the weights are pruned"),
    ]
    return cards(
        ("Test error", show_percent(error.get("unpruned")), "as trained"),
        *(pruned if prune else []),
        ("Margin", show(margin), "smallest training margin" + ("" if positive else "; a sample is misclassified")),
        *([] if d is None else [("Searched d", show_strength(d), f"test error {show_percent(error_there)} at this d")]),
        ("Below chance", f"{len(telling(bounds))} of {len(bounds)}", "bounds that are not vacuous"),
    )


def environment(run: StoredRun, script: str, *words: str) -> Iterator[Markup]:
    """The command that repeats a run, its configuration, and the packages that it ran with.

    Args:
        run: that is repeated.
        script: of `exps`, by its name.
        *words: of the command, after the configuration.
    """
    if run.config_text:
        if not installed():
            yield tag("p", "Run this command in the project's folder:")
        yield tag("pre", " ".join([called(script), "-c", quoted(run.folder / "config.yaml"), *words]))
        yield fold("config.yaml", tag("pre", run.config_text))
    else:
        yield tag("p", "There is no config.yaml.", class_="mute")
    if versions := run.facts.get("versions"):
        text = " · ".join(f"{package} {number or 'unknown'}" for package, number in versions.items())
        yield tag("p", text, class_="name")


def quoted(path: Path) -> str:
    """A file as a word of a command that is typed in any folder."""
    return shlex.quote(str(path.absolute()))
