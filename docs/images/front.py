"""The README's picture: the bytes of a certificate, their network, their guarantee, and published bounds beside it.

    python docs/images/front.py

Writes docs/images/front.svg. Bytes and weights are those of docs/certificates/mnist.mbp, the guarantee is computed from
their number and the training errors in that folder's README, and the ladder's values are those of docs/mnist.md.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from milkshake_mbp.codec import CodedLayer, from_file_bytes
from milkshake_mbp.theory.tail import tail_bound

DOCS = Path(__file__).resolve().parents[1]
INK, GREY, LINE, KEPT, NEGATIVE, POSITIVE = "#1f2933", "#5f6b7a", "#d5dbe3", "#0b7a5b", "#c2571a", "#2563ab"
ROWS = ("Naive counting", "Neyshabur 2017", "Bartlett 2017", "Theorem 5.2, with its own constants", "Neyshabur 2015")
CHANCE = 0.9


def text(
    x: float, y: float, words: str, size: float = 13, fill: str = INK, anchor: str = "start", bold: bool = False
) -> str:
    """One line of text, its baseline at y."""
    weight = ' font-weight="700"' if bold else ""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{fill}" text-anchor="{anchor}"{weight}>{words}</text>'


def cells(values: list[list[int]], x: float, y: float, side: float) -> Iterator[str]:
    """A matrix of whole numbers as squares: zero empty, negative and positive in two colours."""
    for i, line in enumerate(values):
        for j, value in enumerate(line):
            if value:
                fill = POSITIVE if value > 0 else NEGATIVE
                place = f'x="{x + j * side:g}" y="{y + i * side:g}"'
                yield f'<rect {place} width="{side - 0.4:g}" height="{side - 0.4:g}" fill="{fill}"/>'


def code_panel(code: bytes, x: float) -> Iterator[str]:
    """Every byte as a square, the darker the larger."""
    yield text(x, 44, f"{len(code)} bytes", 20, bold=True)
    for number, byte in enumerate(code):
        place = f'x="{x + number % 20 * 9.5:g}" y="{66 + number // 20 * 9.5:g}"'
        yield f'<rect {place} width="8.5" height="8.5" fill="{KEPT}" fill-opacity="{0.12 + 0.88 * byte / 255:.2f}"/>'


def network_panel(layers: list[CodedLayer], x: float) -> Iterator[str]:
    """The weights: a row of 3 × 3 kernels for each channel, then the last layer."""
    first, last = (layer.values for layer in layers)
    yield text(x, 44, f"a network of {sum(map(nonzeros, (first, last))):,} weights", 20, bold=True)
    for channel, kernels in enumerate(first.view(len(first), -1, 3, 3).tolist()):
        for number, kernel in enumerate(kernels):
            yield from cells(kernel, x + number * 16, 66 + channel * 16, 4.9)
    yield from cells(last.tolist(), x, 182, 3)
    for y, words in (
        (98, f"{len(first)} kernels of {first.shape[1] // 9} × 3 × 3"),
        (116, "behind fixed filters"),
    ):
        yield text(x + 202, y, words, 12, GREY)
    yield text(x + 202, 200, f"linear, {last.shape[1]} → {last.shape[0]}", 12, GREY)


def nonzeros(values: Tensor) -> int:
    """Entries other than zero."""
    return int((values != 0).sum())


def guarantee_panel(bound: float, n: int, errors: int, test_error: str, x: float) -> Iterator[str]:
    """What is proved, and from what."""
    yield text(x, 44, "a guarantee", 20, bold=True)
    yield text(x, 106, f"&lt; {100 * bound:.1f}%", 46, KEPT, bold=True)
    lines = (
        "of new digits are misclassified, proved",
        "with probability 95% from the number",
        f"of bytes and {errors} errors on {n:,}",
        f"training images. Test error: {test_error}.",
    )
    for number, line in enumerate(lines):
        yield text(x, 134 + 19 * number, line, 13, GREY)


def ladder_panel(bound: float, rows: list[tuple[str, float]], y: float) -> Iterator[str]:
    """Bounds on the test error on one logarithmic axis."""
    left, right, low, high = 356, 900, math.log10(0.02), math.log10(60_000)

    def place(value: float) -> float:
        return left + (math.log10(value) - low) / (high - low) * (right - left)

    end = y + 40 + 24 * (len(rows) + 1)
    yield text(28, y + 10, "Bounds on the test error", 18, bold=True)
    for number, words in enumerate(
        ("Published ones: for five", "layers of width 784", "on MNIST, hidden", "constants set to 1")
    ):
        yield text(28, y + 38 + 19 * number, words, 13, GREY)
    chance = place(CHANCE)
    sides = f'width="{right - chance:.1f}" height="{end - y + 2:g}"'
    yield f'<rect x="{chance:.1f}" y="{y - 6}" {sides} fill="#f1f3f6"/>'
    yield text(chance + 8, y + 10, "vacuous: no better than guessing", 12, GREY)
    for number, (name, value) in enumerate([("this certificate", bound), *rows]):
        middle = y + 34 + 24 * number
        fill = INK if number else KEPT
        shown = f"{value:,.0f}" if value >= 1 else f"{value:.3f}"
        yield f'<path d="M{left} {middle}H{place(value):.1f}" stroke="{fill}" stroke-width="2"/>'
        yield f'<circle cx="{place(value):.1f}" cy="{middle}" r="5" fill="{fill}"/>'
        yield text(left - 10, middle + 4.5, name, 13, fill, "end", bold=not number)
        yield text(place(value) + 10, middle + 4.5, shown, 13, fill, bold=not number)
    yield f'<line x1="{left}" y1="{end}" x2="{right}" y2="{end}" stroke="{GREY}"/>'
    for power in range(-1, 5):
        tick = place(10.0**power)
        yield f'<line x1="{tick:.1f}" y1="{end}" x2="{tick:.1f}" y2="{end + 5}" stroke="{GREY}"/>'
        yield text(tick, end + 20, f"{10.0**power:,g}", 12, GREY, "middle")


def ladder_values() -> list[tuple[str, float]]:
    """The rows of docs/mnist.md, by value."""
    page = (DOCS / "mnist.md").read_text(encoding="utf-8")
    section = page.split("| `leading`, d = 1 |")[1].split("\n\n")[0]
    found = dict(re.findall(r"^\| ([^|]+?) \| (-?\d+\.\d+)[^|]*\|", section, re.MULTILINE))
    return sorted(((name.split(", with")[0], math.exp(float(found[name]))) for name in ROWS), key=lambda row: row[1])


def draw() -> str:
    """The picture, on a ground of its own, so that it reads the same in light and in dark."""
    code = (DOCS / "certificates" / "mnist.mbp").read_bytes()
    network, length = from_file_bytes(code)
    gallery = (DOCS / "certificates" / "README.md").read_text(encoding="utf-8")
    cells_of = [cell.strip() for cell in re.findall(r"^\| mnist\.mbp \|(.*)\|$", gallery, re.MULTILINE)[0].split("|")]
    bits, errors, n = (int(cell.replace(",", "")) for cell in cells_of[:3])
    assert bits == 8 * length
    bound = tail_bound(errors, bits, n, 0.05)
    layers = [node for node in network.nodes if isinstance(node, CodedLayer)]
    parts = [
        *code_panel(code[:length], 28),
        *network_panel(layers, 290),
        *guarantee_panel(bound, n, errors, cells_of[3], 668),
        *ladder_panel(bound, ladder_values(), 244),
    ]
    for x in (236, 632):
        parts.append(f'<path d="M{x} 118h18m-7 -7l7 7l-7 7" fill="none" stroke="{GREY}" stroke-width="2.5"/>')
    alternative = f"{length} bytes decode to a network that misclassifies less than {100 * bound:.1f}% of new digits"
    box = 'viewBox="0 0 940 470" font-family="system-ui, sans-serif" role="img"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {box}>',
            f"<title>{alternative}</title>",
            f'<rect x="1" y="1" width="938" height="468" rx="10" fill="#ffffff" stroke="{LINE}"/>',
            *parts,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    (DOCS / "images" / "front.svg").write_text(draw(), encoding="utf-8")
