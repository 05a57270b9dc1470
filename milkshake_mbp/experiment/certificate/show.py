"""A certificate as text."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from milkshake_mbp.experiment.ladder import at_most

__all__ = ["PARTS", "certificate_table", "layer_parts"]

PARTS = ("positions", "signs", "sizes", "biases", "scales")


def layer_parts(result: Mapping[str, Any]) -> list[dict[str, float]]:
    """Bits by part, for each layer."""
    return [
        {part: result["parts"].get(f"layer {layer} {part}", 0.0) for part in PARTS}
        for layer in range(len(result["nonzeros"]))
    ]


def certificate_table(result: Mapping[str, Any]) -> RenderableType:
    """What is guaranteed, and where the bits go."""
    before = result["before_search"]
    lines = [
        f"Test error below {at_most(result['bound'])} with probability at least {1 - result['delta']:.0%}",
        f"  {result['train_error']:.3%} training error on {result['n']:,} samples, and a code of "
        f"{result['code_bits']:,} bits ({result['code_bits'] // 8} bytes)",
        f"  {at_most(before['bound'])} before the search ({before['train_error']:.3%}, {before['code_bits']:,} bits)",
        f"  {result['certified_test_error']:.2%} error on the test set, which the guarantee did not use",
    ]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in ("layer", "shape", "weights", *PARTS, "bits"):
        table.add_column(head, justify="left" if head in ("layer", "shape") else "right")
    widths = result["widths"]
    for layer, parts in enumerate(layer_parts(result)):
        table.add_row(
            str(layer),
            f"{widths[layer + 1]} × {widths[layer]}",
            str(result["nonzeros"][layer]),
            *(f"{parts[part]:.0f}" for part in PARTS),
            f"{sum(parts.values()):.0f}",
        )
    table.add_row("header", *[""] * (2 + len(PARTS)), f"{result['parts']['header']:.0f}")
    return Group(Text("\n".join(lines)), Text(), table, Text())
