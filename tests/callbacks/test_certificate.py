import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from milkshake_mbp import CertificateCallback
from milkshake_mbp.callbacks.certificate import RealLayer, _window, certify, read_nodes, round_by_magnitude
from milkshake_mbp.codec import InputMap, Pool, decode, encode, from_file_bytes
from milkshake_mbp.errors import UserError
from milkshake_mbp.experiment.certificate.ladder import as_module
from milkshake_mbp.framework.datamodules import Digits
from milkshake_mbp.framework.main import main
from milkshake_mbp.framework.models import FFN
from milkshake_mbp.reading import Samples, read_network
from milkshake_mbp.theory.tail import tail_bound
from tests.codec.networks import random_network


def blobs(count=3000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 3, (count,), generator=generator)
    return torch.randn(count, 5, generator=generator) + 3 * torch.eye(3, 5)[targets], targets


class Blobs:
    def __init__(self):
        self.dataset_train, self.dataset_test = TensorDataset(*blobs()), TensorDataset(*blobs(seed=1))

    def train_dataloader(self):
        return DataLoader(self.dataset_train, batch_size=100)

    def test_dataloader(self):
        return DataLoader(self.dataset_test, batch_size=100)

    def setup(self, stage):
        pass


def trainer_of(data):
    """As far as a callback looks at one while it fits."""
    return SimpleNamespace(datamodule=data, state=SimpleNamespace(fn="fit"))


class Plain(LightningModule):
    def __init__(self, activation=nn.ReLU):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(5, 16), activation(), nn.Linear(16, 3))

    def forward(self, inputs):
        return self.model(inputs)

    def training_step(self, batch, idx):
        inputs, targets = batch
        return nn.functional.cross_entropy(self(inputs), targets)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def test_a_plain_perceptron_gets_a_certificate(tmp_path):
    path = tmp_path / "best.mbp"
    callback = CertificateCallback(every_n_epochs=2, path=path)
    module, data = Plain(), Blobs()
    for _ in range(3):
        train_by_hand(module, data)
        callback.make(module, data)
    best = callback.best
    inputs, targets = data.dataset_train.tensors
    network, length = from_file_bytes(path.read_bytes())
    assert network == best.network and length == len(best.code)
    wrong = network.errors(inputs, targets)
    assert best.errors == wrong
    assert best.bound == tail_bound(wrong, 8 * length, 3000, 0.05) < 0.3
    error = (module(inputs).argmax(dim=1) != targets).double().mean()
    assert best.error < float(error) + 0.05
    assert callback.test_error(module, data) < best.bound


def test_beside_a_training(configure, tmp_path):
    path = tmp_path / "best.mbp"
    callback = CertificateCallback(every_n_epochs=2, path=path)
    args = configure(max_epochs=5, bias=True, lr=0.2)
    plain, _, _ = main(args, FFN, Digits, verbose=False)
    model, _, _ = main(args, FFN, Digits, callbacks=[callback], verbose=False)
    # Nothing of the training is touched; the end of fit is coded too, whatever the epochs' number.
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    assert callback.make(model, model.trainer.datamodule).code == callback.last.code
    assert from_file_bytes(path.read_bytes())[0] == callback.best.network
    assert callback.best.num_samples == 1437


def train_by_hand(module, data):
    optimizer = module.configure_optimizers()
    for batch in data.train_dataloader():
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        optimizer.step()


def test_only_the_decoded_network_is_judged(monkeypatch):
    network = random_network(8)
    shape = (network.inputs.channels, network.inputs.height, network.inputs.width)
    data = torch.randint(0, 256, (50, *shape), dtype=torch.uint8)
    targets = torch.randint(0, network.widths[-1], (50,))
    other = random_network(9)
    code = encode(network)
    monkeypatch.setattr("milkshake_mbp.codec.certificate.encode", lambda _: code)
    # Whatever is given, what counts is what the bytes say.
    assert certify(other, data, targets, 0.05).errors == decode(code)[0].errors(data, targets)


def test_the_best_survives_a_checkpoint():
    callback, module, data = CertificateCallback(), Plain(), Blobs()
    train_by_hand(module, data)
    made = callback.make(module, data)
    again = CertificateCallback()
    resumed = trainer_of(data)
    again.setup(resumed, module, "fit")
    again.load_state_dict(callback.state_dict())
    again.on_train_start(resumed, module)
    assert again.best.code == made.code and again.best.bound == made.bound


def test_rounding_finely_is_the_network_itself():
    torch.manual_seed(1)
    weights = [torch.randn(9, 6), torch.randn(7, 9), torch.randn(4, 7)]
    biases = [torch.randn(9), None, torch.randn(4)]
    inputs = torch.randn(200, 6).double()
    hidden = inputs
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        hidden = hidden @ weight.double().T + (0 if bias is None else bias.double())
        hidden = hidden.relu() if index < 2 else hidden
    layers = [RealLayer(*pair) for pair in zip(weights, biases, strict=True)]
    logits = round_by_magnitude(layers, InputMap(1, 1, 6, pixels=False), 1.0, 10**5).logits(inputs)
    # Up to one factor; biases are rounded to 1/64 of the largest.
    ratio = (logits * hidden).sum() / (hidden * hidden).sum()
    assert float((logits / ratio - hidden).abs().max()) < 0.02 * float(hidden.abs().max())
    assert float((logits.argmax(dim=1) == hidden.argmax(dim=1)).double().mean()) > 0.97


def test_pruning_keeps_the_largest():
    weight = torch.tensor([[4.0, -3.0, 0.5], [0.1, 2.0, -0.2]])
    network = round_by_magnitude([RealLayer(weight)], InputMap(1, 1, 3, pixels=False), 0.5, 7)
    assert ((network.layers[0].values != 0) == (weight.abs() >= 2)).all()


def test_the_module_of_a_network_is_the_network():
    for seed in range(20):
        network = random_network(seed)
        shape = (network.inputs.channels, network.inputs.height, network.inputs.width)
        data = torch.randint(0, 256, (30, *shape), dtype=torch.uint8)
        unit = network.inputs.largest if network.inputs.pixels else 1
        logits = network.logits(data)
        got = as_module(network).double()(network.inputs(data) / unit).detach()
        scale = float(logits.abs().max()) or 1.0
        assert torch.allclose(logits / scale, got / (float(got.abs().max()) or 1.0), atol=1e-4)


def test_what_cannot_be_certified_is_refused():
    with pytest.raises(UserError, match="Sigmoid"):
        CertificateCallback().make(Plain(nn.Sigmoid), Blobs())
    diverged = Plain()
    with torch.no_grad():
        next(diverged.parameters())[0, 0] = math.nan
    with pytest.raises(UserError, match="NaN or infinity"):
        CertificateCallback().make(diverged, Blobs())
    with pytest.raises(UserError, match="delta"):
        CertificateCallback(delta=1.0)
    with pytest.raises(UserError, match="every_n_epochs"):
        CertificateCallback(every_n_epochs=-1)


class Mean(nn.Module):
    def __init__(self, *over):
        super().__init__()
        self.over = over

    def forward(self, x):
        return x.mean(self.over).flatten(1)


CNNS = {
    "LeNet": lambda: nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 3), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Dropout(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10)),
    ),
    "pooling before the ReLU, groups, a normalization": lambda: nn.Sequential(
        *(nn.Conv2d(1, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.MaxPool2d(3, 1), nn.ReLU()),
        *(nn.Conv2d(6, 9, 1, groups=3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)),
    ),
    "a mean": lambda: nn.Sequential(nn.Conv2d(1, 10, 3), nn.ReLU(), Mean(2, 3)),
    "a global average": lambda: nn.Sequential(
        nn.Conv2d(1, 10, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ),
}


def images(count, classes=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, classes, (count,), generator=generator)
    means = torch.randn(10, 1, 12, 12, generator=torch.Generator().manual_seed(9))
    return means[targets] + 0.7 * torch.randn(count, 1, 12, 12, generator=generator), targets


@pytest.mark.parametrize("name", CNNS)
def test_a_convolutional_network_is_coded_as_it_is(name):
    torch.manual_seed(0)
    module = CNNS[name]()
    inputs, targets = images(300)
    module(inputs)  # so that statistics are not those at the start
    module.eval()
    nodes, seen = read_nodes(module, Samples.of((inputs, targets)))
    logits, exact = round_by_magnitude(nodes, seen, 1.0, 10**5).logits(inputs), module(inputs).detach().double()
    ratio = (logits * exact).sum() / (exact * exact).sum()
    # Biases are rounded to 1/64 of a layer's largest.
    assert float((logits / ratio - exact).abs().max()) < 0.05 * float(exact.abs().max())


def test_a_convolutional_network_gets_a_certificate(tmp_path):
    torch.manual_seed(0)
    module, data = CNNS["LeNet"](), images(3000, classes=3)
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for some, labels in zip(data[0].split(100), data[1].split(100), strict=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(some), labels).backward()
        optimizer.step()
    made = CertificateCallback(path=tmp_path / "best.mbp").make(module, data)
    network, length = from_file_bytes((tmp_path / "best.mbp").read_bytes())
    assert (
        network == made.network and network.layers[0].window and any(isinstance(node, Pool) for node in network.nodes)
    )
    assert made.errors == network.errors(*data)
    assert made.bound == tail_bound(made.errors, 8 * length, 3000, 0.05) < 0.75
    assert network.errors(*images(2000, 3, seed=1)) / 2000 < made.bound


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ((nn.Conv2d(1, 4, (3, 1)), nn.ReLU(), nn.Flatten(), nn.Linear(480, 10)), "square kernels"),
        ((nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2, padding=1), nn.Flatten(), nn.Linear(144, 10)), "MaxPool"),
        (
            (nn.Conv2d(1, 4, 3), nn.AvgPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(100, 10)),
            "a ReLU before average pooling",
        ),
        ((nn.Conv2d(1, 4, 3), nn.ReLU(), Mean(3), nn.Linear(40, 10)), "got mean"),
        ((nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(400, 10)), "a ReLU before layer 2"),
    ],
)
def test_what_the_code_cannot_say_is_refused_in_a_line(layers, said):
    with pytest.raises(UserError, match=said):
        CertificateCallback().make(nn.Sequential(*layers), images(40))


def test_a_linear_layer_on_several_vectors_is_refused():
    """The reader gives none today: such a network is not read as a graph."""
    (layer,) = read_network(nn.Sequential(nn.Linear(4, 2)), torch.randn(3, 4)).layers
    assert _window(layer) is None
    with pytest.raises(UserError, match="linear layers on vectors"):
        _window(replace(layer, inputs=torch.Size((3, 4))))
