from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from milkshake_mbp import CertificateCallback
from milkshake_mbp.callbacks.certificate import certify, round_by_magnitude
from milkshake_mbp.codec import decode, encode, from_file_bytes
from milkshake_mbp.errors import UserError
from milkshake_mbp.experiment.certificate.ladder import as_module
from milkshake_mbp.framework.datamodules import Digits
from milkshake_mbp.framework.main import main
from milkshake_mbp.framework.models import FFN
from milkshake_mbp.theory.occam import occam_bound
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
    assert best.bound == occam_bound(wrong / 3000, 8 * length, 3000, 0.05) < 0.3
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
    monkeypatch.setattr("milkshake_mbp.callbacks.certificate.encode", lambda _: code)
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
    logits = round_by_magnitude(weights, biases, 1.0, 10**5).logits(inputs)
    # Up to one factor; biases are rounded to 1/64 of the largest.
    ratio = (logits * hidden).sum() / (hidden * hidden).sum()
    assert float((logits / ratio - hidden).abs().max()) < 0.02 * float(hidden.abs().max())
    assert float((logits.argmax(dim=1) == hidden.argmax(dim=1)).double().mean()) > 0.97


def test_pruning_keeps_the_largest():
    weight = torch.tensor([[4.0, -3.0, 0.5], [0.1, 2.0, -0.2]])
    network = round_by_magnitude([weight], [None], 0.5, 7)
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
    with pytest.raises(UserError, match="delta"):
        CertificateCallback(delta=1.0)
    with pytest.raises(UserError, match="every_n_epochs"):
        CertificateCallback(every_n_epochs=-1)
