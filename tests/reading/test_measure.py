"""Measured is frozen and true, and what is called a guarantee checks its own premises."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

from milkshake_mbp.callbacks.data import train_samples
from milkshake_mbp.errors import UserError
from milkshake_mbp.reading import Samples, measure, read_network
from milkshake_mbp.reading.measure import _reads_patches, plain_chain
from milkshake_mbp.theory.bounds import CONVENTIONS, evaluate
from milkshake_mbp.theory.pruning import MaskDraw


def data(count=400, seed=0, classes=3):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, classes, (count,), generator=generator)
    return torch.randn(count, 6, generator=generator) + 3 * torch.eye(classes, 6)[targets], targets


def trained(activation=nn.ReLU, bias=False, seed=0):
    torch.manual_seed(seed)
    layers = [nn.Linear(6, 16, bias=bias), activation(), nn.Linear(16, 12, bias=bias), activation()]
    module = nn.Sequential(*layers, nn.Linear(12, 3, bias=bias))
    optimizer = torch.optim.Adam(module.parameters(), 0.02)
    inputs, targets = data()
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(module(inputs), targets).backward()
        optimizer.step()
    return module


@pytest.fixture(scope="module")
def module():
    return trained()


def rows(measured, convention="rigorous"):
    return {bound.name: bound for bound in evaluate(measured, convention)}


def guaranteed(measured):
    return {name for name, bound in rows(measured).items() if bound.applies and bound.holds_with is not None}


def test_it_stays_true_after_the_module_has_changed(module):
    module = copy.deepcopy(module)
    initial = {name: torch.zeros_like(value) for name, value in module.named_parameters()}
    measured = measure(module, data(), data(200, 1), initial=initial)
    before = evaluate(measured)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(7).add_(1)
    for value in initial.values():
        value.add_(3)
    after = evaluate(measured)
    assert before == after and {bound.convention for bound in before} == set(CONVENTIONS)


@pytest.mark.parametrize("small", [slice(3, 6), slice(0, 3)], ids=["off the diagonal", "on it"])
def test_the_true_error_is_of_the_network_at_the_strength_found(small):
    """Weights that are pruned are small in training's inputs and large in the test's; the diagonal is not spared."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(90) % 3
    inputs = torch.eye(3, 6)[targets] + 0.05 * torch.randn(90, 6, generator=generator)
    tests = torch.eye(3, 6)[targets] + torch.tensor([0.0] * 3 + [9.0] * 3) * torch.randn(90, 6, generator=generator)
    module = nn.Sequential(nn.Linear(6, 3, bias=False))
    weight = torch.cat([3 * torch.eye(3), torch.tensor([0.3, 0.3, -0.3])[:, None].repeat(1, 3)], dim=1)
    if small.start == 0:
        inputs, tests, weight = (matrix.roll(3, 1) for matrix in (inputs, tests, weight))
    module[0].weight.data = weight
    measured = measure(module, (inputs, targets), (tests, targets), stability=False)
    assert measured.search is not None and 0 < measured.search.d < 1
    masks = [MaskDraw([weight], 0).masks(measured.search.d, keep_diagonal=kept)[0] for kept in (False, True)]
    assert not masks[0][:, small].all()
    found, spared, unpruned = (
        float((tests @ (weight * mask).T).argmax(1).ne(targets).double().mean()) for mask in (*masks, 1)
    )
    assert measured.true_error == pytest.approx(found) != unpruned
    assert small.start or found != spared


@pytest.mark.parametrize(
    ("parts", "plain", "patches"),
    [
        ((nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)), True, False),
        ((nn.Unflatten(1, (2, 3)), nn.Flatten(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), True, False),
        ((nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)), False, False),
        ((nn.Linear(6, 4), nn.LeakyReLU(0.3), nn.Linear(4, 3)), False, False),
        (
            (nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 2, 2, bias=False), nn.Flatten(), nn.Linear(4, 3, bias=False)),
            False,
            True,
        ),
        ((nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(4, 3, bias=False)), False, False),
        ((nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 2, 2, bias=False), nn.Flatten()), False, False),
    ],
)
def test_what_widths_tell_and_what_reads_patches(parts, plain, patches):
    """A chain whose functions differ, or are not the usual ones, must pay for saying which they are."""
    network = read_network(nn.Sequential(*parts), data()[0][:8])
    assert (plain_chain(network), _reads_patches(network)) == (plain, patches)


def test_a_test_set_is_worth_what_it_says(module):
    measured = measure(module, data(), data(200, 1), stability=False)
    row = rows(measured)["test_set"]
    errors = int((module(data(200, 1)[0]).argmax(1) != data(200, 1)[1]).sum())
    assert row.terms["test_error"] == errors / 200 and row.holds_with == 1 - 0.05 / 4
    assert errors / 200 < math.exp(row.log_value) < 0.2
    without = measure(module, data(), stability=False)
    assert "test_set" not in rows(without)
    others = [bound for name, bound in rows(measured).items() if name != "test_set"]
    assert others == list(rows(without).values()), "a new row moves no other"


class Augmented(Dataset):
    def __init__(self):
        self.inputs, self.targets = data()

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.inputs[index] + 0.01 * torch.randn(6), self.targets[index]


class Table(nn.Module):
    """Has the samples by heart, in a buffer."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        inputs, targets = data()
        self.register_buffer("inputs", inputs)
        self.register_buffer("answers", 100 * F.one_hot(targets, 3).float())

    def forward(self, x):
        known = torch.cdist(x, self.inputs) < 1e-4
        return self.inner(x) + known.float() @ self.answers


class Constants(nn.Module):
    """The same with a tensor that is not registered."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.secret = inner, torch.randn(3)

    def forward(self, x):
        return self.inner(x) + self.secret


class Branching(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) if float(x.sum()) != 1.5 else -self.inner(x)


def test_with_all_premises_there_is_a_guarantee(module):
    assert guaranteed(measure(module, data(), data(200, 1), stability=False)) == {"dense", "naive", "test_set"}
    assert guaranteed(measure(trained(bias=True), data(), stability=False)) == {"dense", "naive"}


@pytest.mark.parametrize("hiding", [Table, Constants, Branching])
def test_a_module_that_may_hold_the_samples_is_guaranteed_nothing(module, hiding):
    measured = measure(hiding(module), data(), stability=False)
    assert guaranteed(measured) == set()
    assert all("not read as a graph" in bound.reason for bound in rows(measured).values())
    assert all(bound.holds_with is None for bound in rows(measured).values())


def test_noisy_labels_and_moving_samples_are_guaranteed_nothing(module):
    noisy = Samples.of(data(), label_noise=0.3)
    assert guaranteed(measure(module, noisy, data(200, 1), stability=False)) == {"test_set"}
    assert guaranteed(measure(module, Augmented(), stability=False)) == set()


def test_a_datamodule_says_that_its_labels_are_noisy():
    class Noisy:
        label_noise, num_groups = 0.25, 0
        dataset_train = TensorDataset(*data())

        def train_dataloader(self):
            return torch.utils.data.DataLoader(self.dataset_train)

    assert train_samples(Noisy()).label_noise == 0.25


def test_repeated_samples_are_said_beside_the_guarantee(module):
    inputs, targets = data(60)
    copies = rows(measure(module, (inputs.repeat(50, 1), targets.repeat(50)), stability=False))["naive"]
    assert copies.terms["distinct_samples"] == 60 and "only 60 of the 3,000" in copies.rests_on
    few = rows(measure(module, (torch.cat([inputs, inputs[:5]]), torch.cat([targets, targets[:5]])), stability=False))
    assert few["dense"].rests_on.startswith("60 of the 65")
    assert rows(measure(module, data(), stability=False))["dense"].rests_on == ""


@pytest.mark.parametrize(
    ("activation", "lost"),
    [
        (nn.ReLU, set()),
        (nn.LeakyReLU, set()),
        (
            nn.Tanh,
            {"neyshabur_2015", "neyshabur_2017", "golowich_2018", "path_norm_l1", "path_norm_l2", "bartlett_2002"},
        ),
        (nn.ReLU6, {"neyshabur_2015", "golowich_2018_depth_free", "neyshabur_2015_l3", "theorem_6_2"}),
        (nn.Softshrink, {"golowich_2018", "path_norm_l2"}),
    ],
)
def test_rows_that_need_homogeneity_say_so(activation, lost):
    measured = measure(trained(activation), data())
    leading = rows(measured, "leading")
    bent = {name for name, bound in leading.items() if "positively homogeneous" in bound.reason}
    assert lost <= bent and (bool(lost) == bool(bent))
    assert not {"bartlett_2017", "golowich_2018_l1", "theorem_5_2", "naive", "dense"} & bent
    assert ("arora_2018" in leading) == (activation is nn.ReLU), "its cushions are those of a ReLU network"


def test_a_slope_above_1_multiplies_what_the_norms_multiply():
    """LeakyReLU with slope 3 is 3 times a 1-Lipschitz function: as if the layers behind were 3 times as large."""
    torch.manual_seed(0)
    steep = nn.Sequential(nn.Linear(6, 8, bias=False), nn.LeakyReLU(3.0), nn.Linear(8, 3, bias=False))

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = copy.deepcopy(steep[0]), copy.deepcopy(steep[2])
            self.last.weight.data.mul_(3)

        def forward(self, x):
            hidden = self.first(x)
            return self.last(F.relu(hidden))

    # The largest of the two slopes is what counts, so the margins are made equal by hand.
    measured, scaled = (measure(module, data(), stability=False) for module in (steep, Scaled()))
    assert measured.log_lipschitz == pytest.approx(math.log(3)) and scaled.log_lipschitz == 0
    for name in ("neyshabur_2015", "bartlett_2017", "golowich_2018_l1", "path_norm_l2"):
        first, second = (
            rows(m, "leading")[name].terms["log_complexity"] + math.log(rows(m, "leading")[name].terms["gamma"])
            for m in (measured, scaled)
        )
        assert first == pytest.approx(second), name


def test_one_logit_with_two_classes():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 1, bias=False))
    inputs, targets = data(classes=2)
    measured = measure(module, (inputs, targets.float()), stability=False)
    right = (module(inputs)[:, 0] * (2 * targets - 1) > 0).double().mean()
    assert rows(measured)["dense"].terms["empirical_risk"] == pytest.approx(1 - float(right))
    assert measured.num_classes == 2
    flat = nn.Sequential(module, nn.Flatten(0))
    assert torch.equal(measure(flat, (inputs, targets), stability=False).margins, measured.margins)
    for classes in (torch.zeros(400), targets * 2, data()[1]):
        with pytest.raises(UserError, match=r"one logit|has 2 classes"):
            measure(module, (inputs, classes), stability=False)


def test_targets_beyond_the_outputs_are_one_line(module):
    with pytest.raises(UserError, match=r"class 7, but the module has 3 classes"):
        measure(module, (data()[0], torch.full((400,), 7)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_networks_of_other_types(module, dtype):
    measured = measure(copy.deepcopy(module).to(dtype), data(), data(50, 1))
    assert measured.weight_bits == 8 * torch.finfo(dtype).bits // 8
    assert measured.margin == pytest.approx(measure(module, data(), stability=False).margin, abs=0.2)
    assert measured.input_norm == pytest.approx(float(data()[0].norm(dim=1).max()), rel=0.01)


@pytest.mark.parametrize(("scale", "dtype"), [(1e-24, 32), (1e19, 32), (1e-170, 64), (1e160, 64)])
def test_the_norm_of_inputs_of_any_scale(scale, dtype):
    kind = torch.float32 if dtype == 32 else torch.float64
    module = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)).to(kind)
    inputs, targets = data()
    measured = measure(module, ((inputs.double() * scale).to(kind), targets), stability=False)
    log_norm = math.log(float(inputs.double().norm(dim=1).max())) + math.log(scale)
    assert measured.log_input_norm == pytest.approx(log_norm, rel=1e-5)


def test_networks_without_wiring_keep_the_rows_that_need_none():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    measured = measure(module, data(), data(100, 1))
    found = {(bound.convention, bound.name) for bound in evaluate(measured)}
    assert {("leading", "dense"), ("measure", "params"), ("measure", "param_norm"), ("rigorous", "test_set")} <= found
    assert not {convention for convention, _ in found} & {"paper"}
    assert measured.search is None and measured.compressed_error is not None
    with pytest.raises(UserError, match="auto needs the paper's network"):
        measure(module, data(), prune_d="auto")


def test_as_many_compressed_margins_as_margins(module):
    measured = measure(module, data(), stability=False)
    with pytest.raises(ValueError, match="of the same samples"):
        replace(measured, compressed_margins=torch.ones(7))
