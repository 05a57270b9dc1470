"""The rows of convention `measure` of a Network-in-Network, against what robust-generalization-measures computes."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from milkshake_mbp.reading import measure
from milkshake_mbp.theory.bounds import evaluate
from milkshake_mbp.theory.measured import Measured
from tests.theory.test_networks_peers import HANDED

SAME = {
    "l2": "L2",
    "l2_dist": "L2_DIST",
    "prod_of_fro": "LOG_PROD_OF_FRO",
    "sum_of_fro": "LOG_SUM_OF_FRO",
    "fro_dist": "FRO_DIST",
    "param_norm": "PARAM_NORM",
    "path_norm": "PATH_NORM",
    **{
        f"{name}{suffix}": f"{theirs}{suffix.upper()}"
        for suffix in ("", "_fft")
        for name, theirs in {
            "prod_of_spec": "LOG_PROD_OF_SPEC",
            "sum_of_spec": "LOG_SUM_OF_SPEC",
            "fro_over_spec": "FRO_OVER_SPEC",
            "dist_spec_init": "DIST_SPEC_INIT",
        }.items()
    },
}
OVER_MARGIN = {
    "inverse_margin": "INVERSE_MARGIN",
    "prod_of_fro_over_margin": "LOG_PROD_OF_FRO_OVER_MARGIN",
    "sum_of_fro_over_margin": "LOG_SUM_OF_FRO_OVER_MARGIN",
    "path_norm_over_margin": "PATH_NORM_OVER_MARGIN",
    **{
        f"{name}{suffix}": f"{theirs}{suffix.upper()}"
        for suffix in ("", "_fft")
        for name, theirs in {
            "spec_init_main": "LOG_SPEC_INIT_MAIN",
            "spec_orig_main": "LOG_SPEC_ORIG_MAIN",
            "prod_of_spec_over_margin": "LOG_PROD_OF_SPEC_OVER_MARGIN",
            "sum_of_spec_over_margin": "LOG_SUM_OF_SPEC_OVER_MARGIN",
        }.items()
    },
}


class Block(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, stride=2, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = torch.relu(norm(conv(x)))
        return x


class NetworkInNetwork(nn.Module):
    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(3, width), Block(width, width))
        self.conv, self.bn = nn.Conv2d(width, 10, 1), nn.BatchNorm2d(10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.bn(self.conv(self.blocks(x)))).mean(dim=(2, 3))


@pytest.fixture(scope="module")
def measured() -> Measured:
    if HANDED is None:
        pytest.skip("the peers' values are not at hand")
    data = np.load(HANDED / "nin_handed.npz")
    trained, initial = (
        {name.removeprefix(group): torch.tensor(data[name]) for name in data if name.startswith(group)}
        for group in ("w/", "init/")
    )
    module = NetworkInNetwork()
    module.load_state_dict(trained, strict=False)
    module.eval()
    inputs = torch.tensor(data["X"]).float() / 255 * 2 - 1
    assert torch.allclose(module(inputs[:50]), torch.tensor(data["logits"][:50]), atol=1e-4)
    return measure(module, (inputs, torch.tensor(data["Y"]).long()), initial=initial, stability=False)


def theirs(name: str) -> float:
    """Natural log of a published value, which is a logarithm itself where its name says so."""
    assert HANDED is not None
    value = json.loads((HANDED / "nin_handed.json").read_text())["values_before_division_by_n"][name]
    return value if name.startswith("LOG") else math.log(value)


def test_rows_that_mean_the_same_agree(measured: Measured) -> None:
    found = {bound.name: bound for bound in evaluate(measured, "measure")}
    for name, published in SAME.items():
        assert found[name].applies and found[name].log_value == pytest.approx(theirs(published), abs=1e-4), name
    # Kernels, biases of convolutions, and four numbers for each of 82 normalized channels; the peers count kernels.
    assert found["params"].log_value == pytest.approx(math.log(2316 + 82 + 4 * 82))
    for name in OVER_MARGIN:
        assert found[name].log_value == math.inf and "not positive" in found[name].reason, name


def test_over_a_positive_margin_they_agree_too(measured: Measured) -> None:
    """The peers take the margin's absolute value."""
    gamma = math.exp(-theirs("INVERSE_MARGIN") / 2)
    positive = replace(measured, margins=torch.full_like(measured.margins, gamma), compressed_margins=None)
    found = {bound.name: bound for bound in evaluate(positive, "measure")}
    for name, published in OVER_MARGIN.items():
        assert found[name].log_value == pytest.approx(theirs(published), abs=1e-4), name


def test_a_layer_is_at_most_its_certified_norm(measured: Measured) -> None:
    """Reshaped ≤ operator ≤ Fourier symbol with strides ignored, for this network."""
    assert measured.operator_scales is not None and measured.fourier is not None
    reshaped, operator = measured.kernel_scales.log_spectral, measured.operator_scales.log_spectral
    assert all(a <= b + 1e-9 for a, b in zip(reshaped, operator, strict=True))
    assert all(a <= b + 0.01 for a, b in zip(operator, measured.fourier.log_spectral, strict=True))
    assert measured.kernel_scales.log_frobenius < measured.operator_scales.log_frobenius


def test_the_ladder_has_rows_on_unrolled_operators(measured: Measured) -> None:
    found = {bound.name: bound for bound in evaluate(measured, "leading")}
    assert {"neyshabur_2015", "bartlett_2017", "neyshabur_2017_initial", "golowich_2018_l1"} <= found.keys()
    assert all("biases" in found[name].reason for name in ("neyshabur_2015", "bartlett_2017"))
    assert found["gonon_2024"].applies
