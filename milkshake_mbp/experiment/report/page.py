"""The report of a run or of several: one web page, with no network, and JavaScript for hover and toggles alone."""

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import yaml

from milkshake_mbp.errors import UserError
from milkshake_mbp.experiment.figures import COLOURS
from milkshake_mbp.experiment.ladder import Line, Section, sections
from milkshake_mbp.experiment.report.charts import Curve, Scale, nice_ticks, plot, rung, rung_axis
from milkshake_mbp.experiment.report.markup import Markup, cards, fold, table, tag
from milkshake_mbp.experiment.results import RunFiles
from milkshake_mbp.files import write_atomically
from milkshake_mbp.theory.bounds import ROWS

__all__ = ["Run", "duration", "environment", "ladder", "read_run", "write_page", "write_report"]

_PAGE = Path(__file__).with_name("page.html")
_ROWS = {(row.convention, row.name): row for row in ROWS}
_CHARTED = {"leading": "hidden constants set to 1", "rigorous": "no hidden constant"}
_SEEDS = {"seed", "prune_seed"}
# Where a run's files are says nothing about the run.
_PLACES = {"out_dir", "data_dir", "wandb_dir"}


@dataclass(frozen=True)
class Run:
    """What is known of a run, finished or not.

    Attributes:
        name: of its folder.
        config: config.yaml; empty if there is none.
        config_text: the same as it was written.
        rows: epochs.csv.
        result: result.json; None if the run has none that can be read.
        problem: why not, in one line.
    """

    name: str
    config: Mapping[str, Any]
    config_text: str
    rows: Sequence[Mapping[str, float]]
    result: Mapping[str, Any] | None
    problem: str

    @property
    def facts(self) -> Mapping[str, Any]:
        """The result; empty if there is none."""
        return self.result or {}


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
    runs = [read_run(Path(folder)) for folder in folders]
    title, body = _one(runs[0]) if len(runs) == 1 else _several(runs)
    return write_page(target, title, body)


def write_page(target: Path, title: str, body: Iterable[Markup]) -> Path:
    """Write a page in the look of a report, and give the file back."""
    colours = "".join(f".c{index}{{--c:{colour}}}" for index, colour in enumerate(COLOURS) if colour != "#000000")
    page = Template(_PAGE.read_text(encoding="utf-8"))
    text = page.substitute(title=tag("title", title), colours=colours, body=Markup("".join(body)))
    write_atomically(target, text.encode())
    return target


def read_run(folder: Path) -> Run:
    """What a run left in its folder.

    Raises:
        UserError: the folder holds no run.
    """
    files = RunFiles(folder)
    if not any(path.is_file() for path in (files.config, files.epochs, files.result)):
        raise UserError(f"{folder} holds no run: expected config.yaml, epochs.csv or result.json in it")
    text = files.config.read_text(encoding="utf-8") if files.config.is_file() else ""
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError:
        config = None
    rows: list[dict[str, float]] = []
    if files.epochs.is_file():
        with files.epochs.open(newline="", encoding="utf-8") as file:
            rows = [{key: _number(cell) for key, cell in row.items() if key and cell} for row in csv.DictReader(file)]
    rows = [row for row in rows if math.isfinite(row.get("epoch", math.nan))]
    result, problem = None, ""
    try:
        result = files.read_result()
    except UserError as error:
        problem = str(error)
    if result is None and not problem:
        done = f"{len(rows)} epoch{'s' * (len(rows) != 1)} so far" if rows else "no epoch yet"
        problem = f"Unfinished: there is no result.json ({done}). The command that started the run continues it."
    if result is not None and not {"bounds", "num_classes"} <= set(result):
        result, problem = None, "result.json holds no bounds: it is from another version, and is not shown."
    if result is not None:
        known = [bound for bound in result["bounds"] if (bound["convention"], bound["name"]) in _ROWS]
        result = {**result, "bounds": known}
    # Not by "." but by its name, where the command is run inside of the folder.
    return Run(folder.resolve().name, config if isinstance(config, dict) else {}, text, rows, result, problem)


def _one(run: Run) -> tuple[str, list[Markup]]:
    title = _title(run)
    return title, [tag("header", tag("h1", title), tag("p", run.name, class_="name")), *_run(run, "h2")]


def _several(runs: Sequence[Run]) -> tuple[str, list[Markup]]:
    axes = _axes(runs)
    runs = sorted(runs, key=lambda run: [_order(run.config.get(key)) for key in axes])
    finished = [run for run in runs if run.result is not None]
    title = f"{len(runs)} runs" + (f" over {' and '.join(axes)}" if 0 < len(axes) < 4 else "")
    ranges = [f"{key}: {', '.join(dict.fromkeys(str(run.config.get(key, '–')) for run in runs))}" for key in axes]
    body = [
        tag(
            "header",
            tag("h1", title),
            tag("p", f"{'All' if len(finished) == len(runs) else f'{len(finished)} of {len(runs)}'} are finished."),
            *(tag("p", text, class_="name") for text in ranges),
        ),
        tag("h2", "Overview"),
        _overview(runs, axes),
    ]
    for key in _numeric(runs, axes):
        rows = [{key: float(run.config[key]), **_as_row(run.facts)} for run in finished]
        if len({row[key] for row in rows}) > 1:
            body += [tag("h2", f"Against {key}"), *_curves(rows, key)]
    body.append(tag("h2", "Each run"))
    for number, run in enumerate(runs, 1):
        heading = tag("h3", _title(run), "" if run.result is not None else " (unfinished)")
        name = tag("p", run.name, class_="name")
        body.append(fold(heading, name, *_run(run, "h4"), id=f"run-{number}", class_="run"))
    return title, body


def _axes(runs: Sequence[Run]) -> list[str]:
    """The keys in which the runs differ, as far as their configurations are known."""
    configs = [run.config for run in runs if run.config]
    keys = dict.fromkeys(key for config in configs for key in config if key not in _PLACES)
    return [key for key in keys if any(config.get(key) != configs[0].get(key) for config in configs)]


def _order(value: Any) -> tuple[bool, float, str]:
    """Numbers by size, then all else by its name."""
    return (False, value, "") if isinstance(value, (int, float)) else (True, 0.0, str(value))


def _numeric(runs: Sequence[Run], axes: Sequence[str]) -> list[str]:
    """The axes that are numbers in every run and no seeds."""
    kinds = {key: {type(run.config.get(key)) for run in runs} for key in axes if key not in _SEEDS}
    return [key for key, kind in kinds.items() if kind <= {int, float}]


def _overview(runs: Sequence[Run], axes: Sequence[str]) -> Markup:
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
        leading = [bound["log_value"] for bound in _of(facts, "leading")]
        theorem = [bound["log_value"] for bound in _of(facts, "paper") if bound["name"] == "theorem_5_2"]
        proved = [bound["log_value"] for bound in _of(facts, "rigorous") if bound["vacuous"] is False]
        cells += [
            _percent(error.get("unpruned")),
            _percent(error.get("pruned")),
            _show(facts.get("margin")),
            _show(facts.get("d"), "{:.3g}"),
            _percent(prune.get("sparsity"), 1),
            *(_log(min(values)) if values else "–" for values in (theorem, leading)),
            f"≤ {math.exp(min(proved)):.1%}" if proved else "nothing",
        ]
        rows.append(cells)
    notes = (
        "Theorem 5.2 is as the paper's tables compute it; then the smallest bound like for like, with hidden constants "
        "set to 1; then the smallest that is proved, as an error."
    )
    numbers = [*axes, *measured]
    return table("Headline numbers", ["run", *numbers], rows, numbers, tag("p", notes, class_="mute"))


def _run(run: Run, heading: str) -> Iterator[Markup]:
    """One run's sections, under headings of that level."""
    yield tag("p", _sentence(run), class_="lead")
    if run.problem:
        yield tag("p", run.problem, class_="problem")
    if run.result is not None:
        yield _headline(run.result)
        yield tag(heading, "What can be said about the test error")
        yield from ladder(run.result, f"h{int(heading[1]) + 1}")
        yield from _layers(run.result, heading)
    measured = [row for row in run.rows if "margin" in row]
    if measured:
        yield tag(heading, "Over the training")
        yield from _curves([{**row, "epoch": row["epoch"] + 1} for row in measured], "epoch")
    elif run.result is not None:
        yield tag("p", "No epochs.csv with a measured epoch: there are no curves.", class_="mute")
    yield tag(heading, "To repeat it")
    script = "ladder.py" if "weights" in run.facts else "mbp.py"
    again = "" if script == "ladder.py" else " --rerun true"
    yield from environment(run, f"python exps/{script} -c {run.name}/config.yaml{again}")


def _title(run: Run) -> str:
    config = run.config
    if "datamodule" not in config:
        return str(run.facts.get("run") or run.name)
    if "weights" in run.facts:
        return f"{config['datamodule']}: {Path(str(run.facts['weights'])).name}"
    width = f", width {config['ffn_hidden_dim']}" if config.get("model") == "ffn" and "ffn_hidden_dim" in config else ""
    return f"{config['datamodule']}{width}, seed {config.get('seed', '–')}"


def _sentence(run: Run) -> str:
    config, facts = run.config, run.facts
    if "weights" in facts:
        start = f"The network in {facts['weights']}, on {config.get('datamodule', 'an unknown dataset')}"
    elif not config:
        start = "A run without config.yaml"
    else:
        start = f"{_architecture(config)} trained on {config.get('datamodule')}"
        start += f" for {facts.get('epochs', config.get('max_epochs'))} epochs"
        start += f" with {config.get('optimizer')} at learning rate {config.get('lr')}, seed {config.get('seed')}"
    parts = [start]
    if "n" in facts:
        parts.append(f"Measured on {facts['n']:,} training samples of {facts['num_classes']} classes")
    if "seconds" in facts:
        parts.append(f"It took {duration(facts['seconds'])}")
    return ". ".join(parts) + "."


def _architecture(config: Mapping[str, Any]) -> str:
    if config.get("model") != "ffn":
        return f"The network {config.get('model')}"
    biases = "" if config.get("bias") else " without biases"
    layers, width = config.get("ffn_num_layers"), config.get("ffn_hidden_dim")
    activation = str(config.get("ffn_activation")).replace("relu", "ReLU")
    return f"A {activation} network of {layers} layers of width {width}{biases},"


def _headline(result: Mapping[str, Any]) -> Markup:
    error, prune, bounds = result.get("test_error") or {}, result.get("prune") or {}, _bounds(result)
    margin, telling = result.get("margin"), _telling(bounds)
    positive = isinstance(margin, float) and margin > 0
    pruned = [
        ("Pruned", _percent(error.get("pruned")), f"at d = {_show(result.get('prune_d'))}"),
        ("Sparsity", _percent(prune.get("sparsity"), 1), "of the weights gone"),
    ]
    return cards(
        ("Test error", _percent(error.get("unpruned")), "as trained"),
        *(pruned if prune else []),
        ("Margin", _show(margin), "the smallest in training" + ("" if positive else ": one is misclassified")),
        ("Searched d", _show(result.get("d"), "{:.3g}"), f"test error {_percent(result.get('true_error'))} there"),
        ("Below chance", f"{telling} of {len(bounds)}", "bounds that say something"),
    )


def ladder(result: Mapping[str, Any], heading: str) -> Iterator[Markup]:
    """Every bound of a result: a chart under headings of that level, and tables."""
    bounds = _bounds(result)
    if bounds:
        yield tag("p", _verdict(result, bounds))
        yield _rungs(result, heading)
        yield fold("The same as tables", *(_section(section) for section in sections(result, tuple(_CHARTED))))
    yield from (_section(section) for section in sections(result, ("paper",)))
    yield from (fold(section.title, _section(section)) for section in sections(result, ("measure",)))


def _verdict(result: Mapping[str, Any], bounds: Sequence[Mapping[str, Any]]) -> str:
    chance, telling = _chance(result), _telling(bounds)
    if not telling:
        return (
            f"None of the {len(bounds)} bounds says anything about this network: each is at or above {chance:.0%}, the "
            "error of guessing. Hollow dots mark them. Open a row for what it stands on."
        )
    best = min(bounds, key=lambda bound: bound["log_value"])
    return (
        f"{telling} of {len(bounds)} bounds say{'s' * (telling == 1)} something, that is, lie below the {chance:.0%} "
        f"of guessing; the smallest, {_label(best)}, says that the error is at most {math.exp(best['log_value']):.1%}. "
        "Hollow dots mark those that say nothing. Open a row for what it stands on."
    )


def _rungs(result: Mapping[str, Any], heading: str) -> Markup:
    """The ladder as a chart: rows of text and track, so that a phone can put one under the other."""
    chance, error = math.log(_chance(result)), result.get("test_error") or {}
    measured = [("Test error, as trained", error.get("unpruned")), ("Test error, pruned", error.get("pruned"))]
    logs = {name: math.log(value) if value else -math.inf for name, value in measured if value is not None}
    values = [
        value for value in [*(bound["log_value"] for bound in _bounds(result)), *logs.values()] if math.isfinite(value)
    ]
    ticks = nice_ticks(min([*values, chance - 1]), max([*values, 1]), count=7)
    scale, lines = Scale(ticks[0], ticks[-1]), [(chance, "chance"), (0.0, "whole")]
    legend = tag(
        "p",
        tag("span", "dashed", class_="key chance"),
        f" chance, ln {_chance(result):.0%} = {chance:.2f} ",
        tag("span", "solid", class_="key whole"),
        " an error of 100%, ln 1 = 0. On the shaded side a bound says nothing. ln is the natural log.",
        class_="mute",
    )
    blocks: list[Markup] = []
    if logs:
        blocks.append(tag(heading, "Measured"))
        for name, value in logs.items():
            blocks.append(_rung(name, value, f"{math.exp(value):.2%}", rung(value, scale, "measured", lines), True))
    for convention in _CHARTED:
        ordered = sorted(_of(result, convention), key=lambda bound: bound["log_value"])
        for section in sections(result, (convention,)):
            blocks += [tag(heading, section.title), tag("p", section.caption, class_="mute")]
            for bound, line in zip(ordered, section.lines, strict=True):
                track = rung(bound["log_value"], scale, f"{convention}{' hollow' * bool(bound['vacuous'])}", lines)
                details = _details(bound, line)
                blocks.append(_rung(line.label, bound["log_value"], line.says, track, not bound["vacuous"], details))
    return tag("div", legend, *blocks, tag("div", rung_axis(scale, ticks), class_="rung foot"), class_="ladder")


def _rung(
    label: str, value: float, says: str, track: Markup, telling: bool, details: tuple[str, Markup] | None = None
) -> Markup:
    cells = [
        tag("span", label, class_="label"),
        track,
        tag("span", tag("b", _log(value)), " ", tag("span", says), class_="says"),
    ]
    look = f"rung{'' if telling else ' mute'}"
    if details is None:
        return tag("div", *cells, class_=look)
    hover, body = details
    return tag("details", tag("summary", *cells, title=hover), body, class_=look, data_bound=label)


def _details(bound: Mapping[str, Any], line: Line) -> tuple[str, Markup]:
    """What a row stands on: for hovering, and at length."""
    reference = _ROWS[bound["convention"], bound["name"]].reference
    failing = f"Its conditions fail: {bound['reason']}." if bound.get("reason") else ""
    facts = [f"From {reference}.", f"ln {_log(bound['log_value'])}, that is {line.value}: {line.says}."]
    if line.holds:
        facts.append(f"Probability that it holds: {line.holds}.")
    terms = [f"{name} = {_show(value)}" for name, value in (bound.get("terms") or {}).items()]
    body = tag(
        "div", tag("p", " ".join([*facts, failing])), tag("p", ", ".join(terms), class_="name") if terms else None
    )
    return failing or f"{line.says}. {reference}", body


def _section(section: Section) -> Markup:
    """A ladder section as a table."""
    notes = tag("div", tag("p", section.caption), *(tag("p", remark) for remark in section.remarks), class_="mute")
    return table(section.title, section.heads, section.table(), ("ln", "value", "holds"), notes)


def _layers(result: Mapping[str, Any], heading: str) -> Iterator[Markup]:
    if prune := result.get("prune"):
        yield tag(heading, "Layer by layer")
        yield _sparsity(prune)
    if layers := (result.get("sketch") or {}).get("layers"):
        yield _sketches(layers)


def _sparsity(prune: Mapping[str, Any]) -> Markup:
    heads = ["layer", "shape", "kept", "gone", "predicted", ""]
    rows = []
    for layer in prune["layers"]:
        gone, predicted = layer["sparsity"], layer["predicted_sparsity"]
        bar = tag(
            "svg",
            tag("rect", width="100%", height="100%", class_="empty"),
            tag("rect", width=f"{gone:.1%}", height="100%", class_="full c0"),
            tag("line", x1=f"{predicted:.1%}", x2=f"{predicted:.1%}", y2="100%"),
            class_="bar",
            role="img",
            aria_label=f"{gone:.1%} gone, {predicted:.1%} predicted",
        )
        rows.append(
            [layer["name"], _shape(layer["shape"]), f"{layer['kept']:,}", f"{gone:.1%}", f"{predicted:.1%}", bar]
        )
    notes = tag("p", "The mark on a bar is what Lemma D.1 predicts for normal weights, diagonals kept.", class_="mute")
    caption = f"Pruned at d = {_show(prune['d'])}, which keeps χ = {_percent(prune['chi'], 1)} of normal weights"
    return table(caption, heads, rows, heads[1:5], notes)


def _sketches(layers: Mapping[str, Mapping[str, Any]]) -> Markup:
    heads = ["layer", "nonzeros", "j_r", "j_c", "sketch", "certified", "bits", "naive", "dense"]
    reasons = list(dict.fromkeys(layer["reason"] for layer in layers.values() if layer["reason"]))
    rows = [
        [
            name,
            f"{layer['nonzeros']:,}",
            f"{layer['column_max']:,}",
            f"{layer['row_max']:,}",
            _shape(layer["sketch_shape"]) if layer["sketch_shape"] else "none",
            "yes" if layer["certified"] else f"no [{reasons.index(layer['reason']) + 1}]" if layer["reason"] else "no",
            *(_bits(layer[kind]) for kind in ("sketch_bits", "naive_bits", "dense_bits")),
        ]
        for name, layer in layers.items()
    ]
    totals = [_bits(sum(layer[f"{kind}_bits"] for layer in layers.values())) for kind in ("sketch", "naive", "dense")]
    certified = sum(bool(layer["certified"]) for layer in layers.values())
    rows.append(
        [
            "all",
            f"{sum(layer['nonzeros'] for layer in layers.values()):,}",
            "",
            "",
            "",
            f"{certified} of {len(layers)}",
            *totals,
        ]
    )
    notes = tag(
        "div",
        tag(
            "p",
            "j_r, j_c: the most nonzeros in a column and in a row. A certified sketch is proven to give its layer "
            "back. Bits: of the sketch, of the places and values of the nonzeros, and of every weight as stored.",
        ),
        *(tag("p", f"[{number}] {reason}.") for number, reason in enumerate(reasons, 1)),
        class_="mute",
    )
    return table(
        "The pruned and rounded layers as sketches",
        heads,
        rows,
        [h for h in heads if h not in ("layer", "certified")],
        notes,
    )


def _curves(rows: Sequence[Mapping[str, float]], key: str) -> Iterator[Markup]:
    """Margin, d, errors and bounds against one of the rows' columns."""
    x = [row[key] for row in rows]
    spread = len(set(x)) > 1 and min(x) > 0 and key != "epoch" and max(x) / min(x) > 50

    def column(name: str) -> list[float]:
        return [row.get(name, math.nan) for row in rows]

    def chart(title: str, curves: Sequence[Curve], y_label: str, **options: Any) -> Markup | None:
        return plot(title, x, curves, x_label=key, y_label=y_label, log_x=spread, **options)

    errors = {
        "as trained": column("test_error"),
        "pruned at the searched d": column("true_error"),
        "in training, pruned and rounded": column("compressed_error"),
    }
    logs: dict[str, Any] = {"show": _log, "lines": {0.0: "an error of 100%"}}
    charts = [
        chart("Margin", [Curve("smallest training margin", column("margin"))], "network output", lines={0.0: ""}),
        chart(
            "Searched d",
            [Curve("d that the margin affords", column("d"))],
            "log axis, 0 not drawn",
            show="{:.3g}".format,
            show_tick="{:.0e}".format,
            log=True,
        ),
        chart(
            "Errors",
            [Curve(name, values) for name, values in errors.items() if not all(map(math.isnan, values))],
            "share of the samples, log axis, 0 not drawn",
            show="{:.2%}".format,
            show_tick=lambda tick: f"{100 * tick:g}%",
            log=True,
        ),
        chart("As the paper's tables compute it", _bound_curves(column, ["paper"]), "natural log", **logs),
        chart("Bounds on the test error", _bound_curves(column, list(_CHARTED)), "natural log", **logs),
    ]
    yield tag("div", *charts, class_="charts")
    if len(set(x)) < len(x):
        yield tag("p", "A dot is a run; a line goes through the medians.", class_="mute")


def _bound_curves(column: Callable[[str], list[float]], conventions: Sequence[str]) -> list[Curve]:
    """Those ever measured; shown are Theorem 5.2 and the smallest of those measured throughout, as colours last."""
    found = [(row, column(f"bounds/{row.convention}/{row.name}")) for row in ROWS if row.convention in conventions]
    found = [(row, values) for row, values in found if not all(map(math.isnan, values))]
    found.sort(key=lambda item: (item[0].name != "theorem_5_2", math.isnan(item[1][0]), _last(item[1])))
    return [
        Curve(
            row.label if row.convention != "rigorous" else f"{row.label} ({_CHARTED['rigorous']})",
            values,
            shown=row.convention == "paper"
            or (place < len(COLOURS) and not math.isnan(values[0]) and _last(values) < math.inf),
        )
        for place, (row, values) in enumerate(found)
    ]


def _last(values: Sequence[float]) -> float:
    return next((value for value in reversed(values) if not math.isnan(value)), math.inf)


def _as_row(result: Mapping[str, Any]) -> dict[str, float]:
    """A result under the names that epochs.csv has for it."""
    error = result.get("test_error") or {}
    given = {
        **{name: result.get(name) for name in ("margin", "d", "true_error", "compressed_error")},
        "test_error": error.get("unpruned"),
        **{f"bounds/{bound['convention']}/{bound['name']}": bound["log_value"] for bound in result["bounds"]},
    }
    return {name: value for name, value in given.items() if value is not None}


def environment(run: Run, command: str) -> Iterator[Markup]:
    """The command that repeats a run, its configuration, and the packages that it ran with."""
    if run.config_text:
        yield tag("pre", command)
        yield fold("config.yaml", tag("pre", run.config_text))
    else:
        yield tag("p", "There is no config.yaml.", class_="mute")
    if versions := run.facts.get("versions"):
        text = " · ".join(f"{package} {number or 'unknown'}" for package, number in versions.items())
        yield tag("p", text, class_="name")


def _of(result: Mapping[str, Any], *conventions: str) -> list[Mapping[str, Any]]:
    return [bound for bound in result["bounds"] if bound["convention"] in conventions]


def _bounds(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Those on the scale of the test error."""
    return _of(result, *_CHARTED) if result else []


def _telling(bounds: Sequence[Mapping[str, Any]]) -> int:
    return sum(bound["vacuous"] is False for bound in bounds)


def _label(bound: Mapping[str, Any]) -> str:
    return _ROWS[bound["convention"], bound["name"]].label


def _chance(result: Mapping[str, Any]) -> float:
    return float(1 - 1 / result["num_classes"])


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


def _percent(value: float | None, digits: int = 2) -> str:
    return "unknown" if value is None else f"{value:.{digits}%}"


def _show(value: Any, form: str = "{:.4g}") -> str:
    if value is None:
        return "unknown"
    if not isinstance(value, (int, float)):
        return str(value)
    return form.format(value) if math.isfinite(value) else "∞" if value > 0 else "−∞" if value < 0 else "not a number"


def _log(value: float) -> str:
    # Adding 0 makes 0.00 of -0.00.
    return f"{round(value, 2) + 0:.2f}" if math.isfinite(value) else _show(value)


def _bits(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "–"


def _shape(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def duration(seconds: float) -> str:
    """Seconds in words."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
