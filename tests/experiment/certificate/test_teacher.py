import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from milkshake_mbp.errors import UserError
from milkshake_mbp.experiment.certificate.coding import Judge
from milkshake_mbp.experiment.certificate.model import CodedNet, input_map
from milkshake_mbp.experiment.certificate.run import make_certificate, pixels_datamodule
from milkshake_mbp.experiment.certificate.teacher import taught
from milkshake_mbp.framework.datamodules import Digits
from milkshake_mbp.framework.models import FFN
from milkshake_mbp.sweep.seeds import best_of_seeds

from .test_run import quiet, settings


def trained(args):
    """A small perceptron that knows the training samples, on the datamodule's own inputs."""
    datamodule = Digits(args)
    datamodule.setup("fit")
    inputs, targets = datamodule.dataset_train.__getitems__(range(len(datamodule.dataset_train)))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return model, inputs, targets


def make_teacher():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


class TooFew(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 3))


class OtherShape(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(65, 10))


def test_a_teacher_in_each_of_its_forms_says_the_same(tmp_path):
    args = settings(tmp_path)
    model, inputs, targets = trained(args)
    expected = model(inputs).detach().softmax(dim=1)
    torch.jit.trace(model, inputs[:2]).save(str(tmp_path / "script.pt"))
    save_file(model.state_dict(), tmp_path / "plain.safetensors")
    args.ffn_hidden_dim, args.ffn_num_layers, args.bias, args.ffn_input_dim, args.num_classes = 32, 2, True, 64, 10
    ours = FFN(args)
    with torch.no_grad():
        for mine, given in zip(ours.model.parameters(), model.parameters(), strict=True):
            mine.copy_(given)
    run = tmp_path / "run"
    run.mkdir()
    torch.save(ours.state_dict(), run / "model.pt")
    keys = {"model": "ffn", "ffn_hidden_dim": 32, "ffn_num_layers": 2, "bias": True, "weights": ""}
    (run / "config.yaml").write_text(yaml.safe_dump(keys))
    for name in ("script.pt", "plain.safetensors", "run/model.pt"):
        found, error = taught(str(tmp_path / name), args)
        assert torch.allclose(found, expected, atol=1e-5), name
        assert error == float((expected.argmax(dim=1) != targets).double().mean()) < 0.05
    assert taught(f"{__name__}:make_teacher", args)[0].shape == (len(targets), 10)


def test_what_is_no_teacher_gets_a_line(tmp_path):
    args = settings(tmp_path)
    (tmp_path / "junk.pt").write_bytes(b"junk")
    save_file({"conv.weight": torch.ones(2, 1, 3, 3)}, tmp_path / "conv.safetensors")
    for name, said in (
        ("absent.pt", "neither a file nor package.module:Class"),
        (str(tmp_path / "junk.pt"), "does not tell its network"),
        (str(tmp_path / "conv.safetensors"), "give TorchScript"),
        ("no.such:Thing", "cannot be made without arguments"),
        ("collections:Counter", "gives Counter"),
        (f"{__name__}:TooFew", "expected 10 finite logits"),
        (f"{__name__}:OtherShape", "does not take samples of shape"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            taught(name, args)
        assert str(caught.value).startswith("teacher: ") and "\n" not in str(caught.value)


def test_the_loss_with_a_teacher_is_that_of_the_mixed_targets(tmp_path):
    args = settings(tmp_path, distillation=0.25, cross_entropy=0.4, cross_entropy_first=0.4, price=0)
    samples = pixels_datamodule(args).dataset_train
    args.sample_shape, args.num_samples, args.num_classes, args.brightest = (1, 8, 8), len(samples), 10, 16
    module = CodedNet(args)
    inputs, targets = samples.data[:50].float(), samples.targets[:50]
    teacher = torch.rand(50, 10).softmax(dim=1)
    given = torch.cat([targets[:, None].float(), teacher], dim=1)
    probs = module(inputs).softmax(dim=1)
    mixed = 0.75 * nn.functional.one_hot(targets, 10) + 0.25 * teacher
    cross, right = -(mixed * probs.log()).sum(dim=1), (mixed * probs).sum(dim=1)
    module.train()
    made = module.step((inputs, given), 0)
    assert torch.allclose(made["loss"], (0.4 * cross + 0.6 * (1 - right)).mean(), atol=1e-5)
    assert torch.equal(made["targets"], targets)
    # A teacher that knows the labels and nothing else changes nothing.
    sure = torch.cat([targets[:, None].float(), nn.functional.one_hot(targets, 10).float()], dim=1)
    assert torch.allclose(module.step((inputs, sure), 0)["loss"], module.step((inputs, targets), 0)["loss"])


def test_a_certificate_with_a_teacher_is_a_certificate(tmp_path):
    args = settings(tmp_path, teacher=f"{__name__}:make_teacher", search_rounds=0, max_epochs=2, code_every_n_epochs=2)
    torch.manual_seed(0)
    files, result = make_certificate(args, quiet())
    datamodule = pixels_datamodule(args)
    samples = datamodule.dataset_train
    args.sample_shape = (1, 8, 8)
    made = Judge.of(input_map(args), samples, args.delta).again(files.certificate.read_bytes()[:-4].hex())
    assert (made.errors, made.bound) == (result["train_errors"], result["bound"])


@pytest.mark.slow
def test_the_best_of_several_seeds(tmp_path):
    args = settings(tmp_path, seeds=2, search_rounds=0)
    files, result = best_of_seeds(args, quiet())
    one = settings(tmp_path / "apart", seed=result["seed"], search_rounds=0)
    assert make_certificate(one, quiet())[1]["bound"] == result["bound"]
    bounds = [make_certificate(settings(tmp_path, seed=seed, search_rounds=0), quiet())[1]["bound"] for seed in (1, 2)]
    assert min(bounds) == result["bound"] and files.certificate.is_file()
