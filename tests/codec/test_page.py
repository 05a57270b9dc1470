"""The decoder printed in docs/certificate.md reads what the package writes."""

import re
from pathlib import Path

import pytest

from milkshake_mbp.codec import InputMap, encode
from tests.codec.networks import random_network

PAGE = Path(__file__).parents[2] / "docs" / "certificate.md"


@pytest.fixture(scope="module")
def decode():
    names = {}
    exec(re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1], names)
    return names["decode"]


@pytest.mark.parametrize("seed", range(60))
def test_the_decoder_on_the_page_reads_every_network(decode, seed):
    network = random_network(seed)
    code = encode(network)
    inputs, layers, length = decode(code + b"\x5a\xa5junk")
    assert InputMap(*inputs) == network.inputs and length == len(code)
    assert len(layers) == len(network.layers)
    grids = [network.inputs.grid, *((1, 1, width) for width in network.widths[1:-1])]
    for (exponent, neurons), layer, (_, height, width) in zip(layers, network.layers, grids, strict=True):
        assert exponent == layer.bias_exponent
        assert [scale for scale, _, _ in neurons] == layer.scales.tolist()
        assert [bias for _, bias, _ in neurons] == layer.biases.tolist()
        for (_, _, weights), values in zip(neurons, layer.values.tolist(), strict=True):
            found = {(c * height + i) * width + j: value for (c, i, j), value in weights.items()}
            assert found == {place: value for place, value in enumerate(values) if value}
