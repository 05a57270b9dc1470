"""The decoders printed in docs/certificate.md read and compute what the package writes."""

import re
from pathlib import Path

import pytest
import torch

from milkshake_mbp.codec import CodedLayer, InputMap, Pool, encode
from tests.codec.networks import random_convolutional, random_network

PAGE = Path(__file__).parents[2] / "docs" / "certificate.md"


@pytest.fixture(scope="module")
def page():
    names = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)), names)
    return names


@pytest.mark.parametrize("seed", range(60))
def test_the_decoder_on_the_page_reads_every_network(page, seed):
    network = random_network(seed)
    code = encode(network)
    inputs, layers, length = page["decode"](code + b"\x5a\xa5junk")
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


@pytest.mark.parametrize("seed", range(60))
def test_the_decoder_of_version_1_reads_and_computes_every_network(page, seed):
    network = random_convolutional(seed)
    code = encode(network)
    if page["Bits"](code).gamma() == 0:
        return
    inputs, nodes, length = page["decode1"](code + b"\x5a\xa5junk")
    assert InputMap(*inputs) == network.inputs and length == len(code)
    for (kind, window, numbers), node in zip(nodes, network.nodes, strict=True):
        if isinstance(node, Pool):
            assert (kind, window[0], window[1]) == (node.kind, node.kernel, node.stride)
            continue
        assert isinstance(node, CodedLayer)
        exponent, rows, scales, biases = numbers
        assert (exponent, rows, biases) == (node.bias_exponent, node.values.tolist(), node.biases.tolist())
        assert scales == ([None] * len(rows) if node.scales is None else node.scales.tolist())
    if network.inputs.pixels:
        shape = (network.inputs.channels, network.inputs.height, network.inputs.width)
        generator = torch.Generator().manual_seed(seed)
        data = torch.randint(0, 256, (2, *shape), dtype=torch.uint8, generator=generator)
        assert [page["logits"](inputs, nodes, image) for image in data.tolist()] == network.logits(data).tolist()
