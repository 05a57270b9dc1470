"""A certificate as text."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from milkshake_mbp.codec import CodedNetwork, InputMap
from milkshake_mbp.reporting.terminal import Fitted
from milkshake_mbp.reporting.words import at_most, show_percent, show_shape

__all__ = ["PARTS", "certificate_table", "confidence", "layer_parts", "premises", "shown"]

PARTS = ("positions", "signs", "sizes", "biases", "scales")


def layer_parts(result: Mapping[str, Any]) -> list[dict[str, float]]:
    """Bits by part, for each layer."""
    return [
        {part: result["parts"].get(f"layer {layer} {part}", 0.0) for part in PARTS}
        for layer in range(len(result["nonzeros"]))
    ]


def confidence(delta: float) -> str:
    """1 − δ in percent, never rounded up."""
    return f"{(100 * (1 - Decimal(repr(delta)))).normalize():f}%"


def shown(network: CodedNetwork) -> str:
    """Channels, rows and columns through the network."""
    return " → ".join("×".join(map(str, grid)).removesuffix("×1×1") for grid in network.grids)


def premises(inputs: InputMap, num_samples: int, distinct: int, data: str) -> str:
    """What a guarantee rests on."""
    lines = [
        f"that the {num_samples:,} samples of {data} are independent draws from one distribution, and that the code, "
        "with its family of input maps, was fixed without looking at them. Training, search, and the choice of seed, "
        "widths and network may depend on the samples."
    ]
    if inputs.bank:
        lines.append(
            f"The filters of bank {inputs.bank} are human knowledge about images, fixed beforehand as part of the "
            "code, so they cost no bits."
        )
    if distinct < num_samples:
        lines.append(f"{distinct:,} of the {num_samples:,} pairs of sample and label are distinct.")
    if 2 * distinct <= num_samples:
        lines.append("Most are repeats: the guarantee assumes that they are independent draws that happen to coincide.")
    return " ".join(lines)


def certificate_table(result: Mapping[str, Any]) -> RenderableType:
    """What is guaranteed, and where the bits go."""
    before = result["before_search"]
    lines = [
        f"Test error below {at_most(result['bound'])} with probability at least {confidence(result['delta'])}",
        f"  {show_percent(result['train_error'])} training error on {result['n']:,} samples, and a code of "
        f"{result['code_bits']:,} bits ({result['code_bits'] // 8:,} bytes)",
        f"  {at_most(before['bound'])} before the search ({show_percent(before['train_error'])}, "
        f"{before['code_bits']:,} bits)",
        f"  {show_percent(result['certified_test_error'])} error on the test set, which the guarantee did not use",
        f"  It assumes {result['premises']}",
    ]
    rows = [
        [
            str(layer),
            show_shape(result["shapes"][layer]),
            f"{result['nonzeros'][layer]:,}",
            *(f"{parts[part]:,.0f}" for part in PARTS),
            f"{sum(parts.values()):,.0f}",
        ]
        for layer, parts in enumerate(layer_parts(result))
    ]
    rows.append(["header", *[""] * (2 + len(PARTS)), f"{result['parts']['header']:,.0f}"])
    heads = ["layer", "shape", "weights", *PARTS, "bits"]
    table = Fitted(heads, rows, heads[2:], ["shape"], PARTS[::-1], "Where the bits go", "report.html has all columns")
    return Group(Text("\n".join(lines)), Text(), table)
