"""The report of a certificate: what is guaranteed, where the bits go, how they became fewer, and the network itself."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from milkshake_mbp.codec import CodedLayer, CodedNetwork, InputMap, from_file_bytes
from milkshake_mbp.commands import called
from milkshake_mbp.experiment.certificate.files import CertificateFiles, history
from milkshake_mbp.experiment.certificate.show import PARTS, confidence, layer_parts, premises, shown
from milkshake_mbp.reporting.report.charts import Curve, path, plot, stack
from milkshake_mbp.reporting.report.ladder import ladder
from milkshake_mbp.reporting.report.markup import Markup, cards, fold, keys, table, tag
from milkshake_mbp.reporting.report.page import environment, header, quoted, write_page
from milkshake_mbp.reporting.words import at_most, duration, show_percent, show_shape, show_tick
from milkshake_mbp.runs.stored import StoredRun, read_run

__all__ = ["write_certificate_report"]

# More maps than that are no picture of a network.
_LARGEST_MAPS = 256


def write_certificate_report(files: CertificateFiles, result: Mapping[str, Any]) -> Path:
    """Write report.html into the folder of a certificate.

    Args:
        files: the folder, with certificate.mbp, and epochs.csv and rounds.csv if there are any.
        result: the content of result.json.

    Returns:
        The file written.
    """
    run = read_run(files.folder)
    title = f"{run.config.get('datamodule', run.name)}: test error below {at_most(result['bound'])}"
    return write_page(files.report, title, _body(files, run, result, title))


def _body(files: CertificateFiles, run: StoredRun, result: Mapping[str, Any], title: str) -> Iterator[Markup]:
    network, _ = from_file_bytes(files.certificate.read_bytes())
    yield header(title, run.name)
    yield tag("p", _guarantee(result), class_="lead")
    yield _headline(result, network)
    yield tag("p", _assumptions(result, network.inputs), class_="mute")
    yield tag("h2", "Where the bits go")
    yield from _bits(result, network)
    charts = list(_charts(*history(files)))
    if charts:
        yield tag("h2", "During training and search")
        yield tag("div", *charts, class_="charts")
    yield from _maps(network)
    if result["bounds"]:
        yield tag("h2", "Other bounds on this network’s test error")
        yield tag(
            "p",
            "The rows without a hidden constant hold jointly, each with its share of δ. Therefore “The coded bytes” "
            "is slightly larger than the guarantee above, which uses all of δ.",
        )
        yield from ladder(result, "h3")
    yield tag("h2", "How to verify and repeat it")
    yield tag(
        "p",
        "This page shows what was counted when it was written. To count again, from the file and the training samples "
        "alone:",
    )
    yield tag("pre", f"{called('certificate')} --verify {quoted(files.certificate)} -c {quoted(files.config)}")
    yield tag("p", f"To repeat training, coding and search, which took {duration(result['seconds'])}:")
    yield from environment(run, "certificate", "--rerun true")


def _guarantee(result: Mapping[str, Any]) -> str:
    return (
        f"With probability at least {confidence(result['delta'])} over the draw of the {result['n']:,} training "
        f"samples, this network misclassifies at most {at_most(result['bound'])} of new samples, because its code "
        f"takes {result['code_bits']:,} bits ({result['code_bits'] // 8:,} bytes) and it misclassifies "
        f"{result['train_errors']:,} of the training samples ({show_percent(result['train_error'])}). It misclassifies "
        f"{show_percent(result['certified_test_error'])} of the test set, which the guarantee does not use."
    )


def _headline(result: Mapping[str, Any], network: CodedNetwork) -> Markup:
    before, places = result["before_search"], sum(layer.values.numel() for layer in network.layers)
    return cards(
        ("Guarantee", at_most(result["bound"]), f"{at_most(before['bound'])} before the search"),
        ("Code", f"{result['code_bits']:,} bits", f"{before['code_bits']:,} before the search"),
        (
            "Training error",
            show_percent(result["train_error"]),
            f"{show_percent(before['train_error'])} before the search",
        ),
        ("Test error", show_percent(result["certified_test_error"]), "not used for the guarantee"),
        ("Weights", f"{network.nonzeros:,}", f"nonzero, of {places:,}"),
        ("Neurons", shown(network), _seen(result["inputs"])),
    )


def _seen(inputs: Mapping[str, Any]) -> str:
    if inputs.get("bank"):
        return f"on the features of bank {inputs['bank']}, cells of {inputs['cell']} × {inputs['cell']} pixels"
    if not inputs["pixels"]:
        return "on the datamodule's inputs"
    if inputs["pool"] == 1 and inputs["stride"] == 1:
        what = "on pixels"
    else:
        what = f"on sums of {inputs['pool']} × {inputs['pool']} pixels at stride {inputs['stride']}"
    what += f", {inputs['crop']} pixels cropped on each side" if inputs["crop"] else ""
    return what + (", grey" if inputs["grey"] else "")


def _assumptions(result: Mapping[str, Any], inputs: InputMap) -> str:
    n = result["n"]
    return f"The guarantee assumes {premises(inputs, n, result.get('distinct', n), 'the training set')} " + (
        "Errors are counted with integers below 2⁵³, which float64 represents exactly."
        if result["exact"]
        else "Errors are counted in float64 on the CPU."
    )


def _bits(result: Mapping[str, Any], network: CodedNetwork) -> Iterator[Markup]:
    layers, head = layer_parts(result), result["parts"]["header"]
    total = head + sum(sum(parts.values()) for parts in layers)
    names = [*PARTS, "header"]
    yield keys({name: f"c{index}" for index, name in enumerate(names)})
    stacks = [(f"layer {index}", parts) for index, parts in enumerate(layers)]
    stacks.append(("header", dict.fromkeys(PARTS, 0.0) | {"header": head}))
    whole = max(sum(parts.values()) for _, parts in stacks)
    bars = []
    for name, parts in stacks:
        bits = sum(parts.values())
        says = tag("span", tag("b", f"{bits:,.0f}"), " ", tag("span", f"bits, {bits / total:.1%}"), class_="says")
        bars.append(tag("div", tag("span", name, class_="label"), stack(parts, whole), says, class_="rung"))
    yield tag("div", *bars, class_="stacks")
    heads = ["part", "shape", "weights", *PARTS, "bits", "per weight"]
    rows = [
        [
            f"layer {index}",
            show_shape(network.layers[index].values.shape),
            f"{result['nonzeros'][index]:,}",
            *(f"{parts[part]:,.1f}" for part in PARTS),
            f"{sum(parts.values()):,.1f}",
            f"{sum(parts.values()) / max(1, result['nonzeros'][index]):.2f}",
        ]
        for index, parts in enumerate(layers)
    ]
    sums = [f"{sum(parts[part] for parts in layers):,.1f}" for part in PARTS]
    weights = sum(result["nonzeros"])
    rows.append(["header", "", "", *[""] * len(PARTS), f"{head:,.1f}", ""])
    rows.append(["all", "", f"{weights:,}", *sums, f"{total:,.1f}", f"{total / max(1, weights):.2f}"])
    notes = tag(
        "p",
        "Nonzero weights, and the −log₂ of the probabilities that the code assigns to each part. Positions say which "
        f"weights are nonzero. The guarantee counts whole bytes, {result['code_bits']:,} bits.",
        class_="mute",
    )
    yield table("Bits by layer and part", heads, rows, heads[2:], notes)


def _charts(epochs: Sequence[Mapping[str, float]], rounds: Sequence[Mapping[str, float]]) -> Iterator[Markup | None]:
    """Over the training and then the search on one axis, and the bound against the bits."""
    if not epochs and not rounds:
        return
    end = epochs[-1]["at"] if epochs else 0.0
    x = [row["at"] for row in epochs] + [end + row["at"] for row in rounds]
    rows = [*epochs, *rounds]

    def show_x(place: float) -> str:
        return f"{place:g}" if place <= end else f"+{place - end:g}"

    def chart(title: str, names: Mapping[str, str], y_label: str, **options: Any) -> Markup | None:
        # Bounds are rounded up wherever they stand.
        shown = {name: at_most if name.endswith("bound") else None for name in names.values()}
        curves = [Curve(label, [row[name] for row in rows], show=shown[name]) for label, name in names.items()]
        label = "epoch" + ", then + round of the search" * bool(rounds)
        return plot(title, x, curves, x_label=label, y_label=y_label, show_x=show_x, **options)

    shares: dict[str, Any] = {"show": show_percent, "show_tick": show_tick, "log": True}
    yield chart(
        "Guarantee",
        {"bound as coded": "bound", "best so far": "best_bound", "training error": "error"},
        "share of the samples, log axis",
        **shares,
    )
    yield chart("Length of the code", {"bits": "bits"}, "bits", show="{:,.0f}".format, show_tick="{:,g}".format)
    yield path(
        "Guarantee against bits",
        {
            "training": [(f"epoch {row['at']:g}", row["bits"], row["bound"]) for row in epochs],
            "search": [(f"round {row['at']:g}", row["bits"], row["bound"]) for row in rounds],
        },
        x_label="bits",
        y_label="bound",
        show_x="{:,.0f} bits".format,
        show_y=at_most,
        show_tick=show_tick,
    )


def _maps(network: CodedNetwork) -> Iterator[Markup]:
    """The weights of each layer that reads something with rows and columns, where they lie on it."""
    title = True
    for number, (node, grid) in enumerate(_on_grids(network)):
        rows, largest = node.values, max(1, int(node.values.abs().max()))
        if len(rows) > _LARGEST_MAPS:
            continue
        if title:
            yield tag("h2", "What each neuron reads")
            yield keys({"added": "plus", "subtracted; the fainter, the smaller": "minus"})
            title = False
        maps = [
            tag(
                "li",
                _map(values.reshape(grid).tolist(), largest, f"neuron {index} of layer {number}"),
                f"{int((values != 0).sum())} weights",
            )
            for index, values in enumerate(rows)
        ]
        drawn = tag("ul", *maps, class_="maps")
        notes = "Channels beside one another. " if grid[0] > 1 else ""
        sizes = f"Weights are whole numbers from −{largest} to {largest} on a grid of {grid[1]} × {grid[2]}."
        yield tag("p", f"Layer {number}. {notes}{sizes}", class_="mute")
        yield drawn if len(maps) <= 64 else fold(f"All {len(maps)} neurons", drawn)


def _on_grids(network: CodedNetwork) -> Iterator[tuple[CodedLayer, tuple[int, int, int]]]:
    """Layers, with the channels, rows and columns that a neuron's weights have, where they have any."""
    for node, grid in zip(network.nodes, network.grids, strict=False):
        if isinstance(node, CodedLayer):
            if window := node.window:
                grid = (grid[0] // window.groups, window.kernel, window.kernel)
            if grid[1] > 1:
                yield node, grid


def _map(planes: Sequence[Sequence[Sequence[int]]], largest: int, name: str) -> Markup:
    """A neuron's weights as squares, one path for each value."""
    height, width = len(planes[0]), len(planes[0][0])
    squares: dict[int, str] = {}
    for channel, plane in enumerate(planes):
        for row, line in enumerate(plane):
            for column, value in enumerate(line):
                if value:
                    place = f"M{channel * (width + 1) + column} {row}h1v1h-1z"
                    squares[value] = squares.get(value, "") + place
    drawn = [
        tag(
            "path",
            d=line,
            class_="plus" if value > 0 else "minus",
            fill_opacity=f"{0.25 + 0.75 * abs(value) / largest:.2f}",
        )
        for value, line in sorted(squares.items())
    ]
    whole = len(planes) * (width + 1) - 1
    return tag("svg", *drawn, viewBox=f"0 0 {whole} {height}", role="img", aria_label=f"Weights of {name}")
