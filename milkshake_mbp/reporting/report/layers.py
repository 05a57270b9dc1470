"""A result layer by layer: what was pruned, and what sketches make of it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from milkshake_mbp.reporting.report.markup import Markup, table, tag
from milkshake_mbp.reporting.words import show_bits, show_percent, show_shape, show_strength

__all__ = ["layer_tables"]


def layer_tables(result: Mapping[str, Any], heading: str) -> Iterator[Markup]:
    """Tables of a result's layers, under a heading of that level."""
    if prune := result.get("prune"):
        yield tag(heading, "Layer by layer")
        yield _sparsity(prune, result.get("kernels") or {})
    if layers := (result.get("sketch") or {}).get("layers"):
        yield _sketches(layers)


def _sparsity(prune: Mapping[str, Any], kernels: Mapping[str, Sequence[int]]) -> Markup:
    heads = ["layer", "shape", "kept", "pruned", "predicted", ""]
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
            aria_label=f"{gone:.1%} pruned, {predicted:.1%} predicted",
        )
        rows.append(
            [
                layer["name"],
                show_shape(kernels.get(layer["name"], layer["shape"])),
                f"{layer['kept']:,}",
                f"{gone:.1%}",
                f"{predicted:.1%}",
                bar,
            ]
        )
    text = "The mark on a bar is the sparsity that is predicted for normally distributed weights (Assumption 3.1)."
    notes = tag("p", text, class_="mute")
    own = {layer["name"]: layer["d"] for layer in prune["layers"] if layer.get("d", prune["d"]) != prune["d"]}
    aside = [f"{name} at d = {show_strength(d)}" for name, d in own.items()]
    aside += [f"{name} not pruned" for name in prune.get("kernels_left_alone", ())]
    notes = tag("div", notes, tag("p", f"By the rule: {', '.join(aside)}."), class_="mute") if aside else notes
    if prune.get("left_alone"):
        others = f"{len(prune['left_alone'])} other parameters, such as biases and those of normalizations, are not "
        others += f"pruned; with the kernels that the rule excludes, these are {prune['numbers_left_alone']:,} numbers."
        notes = tag("div", notes, tag("p", others), class_="mute")
    caption = (
        f"Pruned at d = {show_strength(prune['d'])}, which keeps a share χ = {show_percent(prune['chi'], 1)} of "
        "normally distributed weights"
    )
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
            show_shape(layer["sketch_shape"]) if layer["sketch_shape"] else "none",
            "yes" if layer["certified"] else f"no [{reasons.index(layer['reason']) + 1}]" if layer["reason"] else "no",
            *(show_bits(layer[kind]) for kind in ("sketch_bits", "naive_bits", "dense_bits")),
        ]
        for name, layer in layers.items()
    ]
    totals = [
        show_bits(sum(layer[f"{kind}_bits"] for layer in layers.values())) for kind in ("sketch", "naive", "dense")
    ]
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
            "j_r and j_c are the largest numbers of nonzeros in a column and in a row. A certified sketch is proved to "
            "determine its layer. Bits are those of the sketch, of naive coding (places and values of the nonzeros), "
            "and of dense coding (every weight as stored).",
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
