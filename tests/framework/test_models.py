"""The convolutional networks and transformers: upstream Milkshake's shapes and names, and what bad data meet."""

import math
from itertools import pairwise
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from pytorch_lightning import Trainer
from torch import nn

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.datamodules import Arrays, Digits
from milkshake_mbp.framework.main import main, model_keys
from milkshake_mbp.framework.models import MODELS, Model, load_model
from milkshake_mbp.framework.settings import SIZES

SMALL = {
    "cnn": {"cnn_initial_width": 4, "cnn_num_layers": 3, "cnn_padding": 1},
    "nin": {"nin_width": 6},
    "resnet": {"resnet_pretrained": False},
    "vit": {"vit_pretrained": "none", "image_size": 32, "input_channels": 3},
    "swin": {"swin_pretrained": "none", "swin_version": "tiny", "image_size": 32, "input_channels": 3},
}
QUICK = ("cnn", "nin", "resnet")


@pytest.fixture
def keys(configure):
    """A configuration with what the data would tell."""

    def build(shape=(1, 8, 8), **given):
        args = configure(**given)
        args.num_classes, args.num_groups, args.ffn_input_dim = 10, 0, math.prod(shape)
        args.input_channels, args.image_size = shape[0], shape[1]
        return args

    return build


def build(name, args, shape):
    model = load_model(name)(args)
    model.fit_to(torch.zeros(shape))
    return model


def count(model):
    return sum(parameter.numel() for parameter in model.model.parameters())


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def differing(first, second):
    return {name for name in first if not torch.equal(first[name], second[name])}


def test_every_model_has_a_size():
    assert SIZES.keys() == MODELS.keys()


@pytest.mark.parametrize(
    ("shape", "layers", "width", "kernel", "padding", "features"),
    [
        ((1, 28, 28), 3, 16, 3, 0, 32 * 3 * 3),  # 26, 24 and pooled: 12, 3
        ((3, 32, 32), 5, 32, 3, 1, 256 * 1 * 1),  # 32, 16, 8, 4 and pooled: 1
        ((1, 28, 28), 3, 6, 5, 2, 12 * 3 * 3),  # 28, 14 and pooled: 3
        ((1, 8, 12), 2, 3, 3, 1, 3 * 2 * 3),  # not square
    ],
)
@pytest.mark.parametrize("batchnorm", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_cnn_has_the_parameters_that_its_keys_say(
    keys, shape, layers, width, kernel, padding, features, batchnorm, bias
):
    given = {"cnn_num_layers": layers, "cnn_initial_width": width, "cnn_kernel_size": kernel, "cnn_padding": padding}
    model = build("cnn", keys(shape, cnn_batchnorm=batchnorm, bias=bias, **given), shape)
    widths = [shape[0], *(width * 2**index for index in range(layers - 1))]
    convolutions = sum((before * kernel**2 + bias + 2 * batchnorm) * after for before, after in pairwise(widths))
    assert count(model) == convolutions + (features + bias) * 10
    assert model(torch.randn(5, *shape)).shape == (5, 10)


@pytest.mark.parametrize(
    ("batchnorm", "modules"), [(True, (0, 1, 3, 4, 7, 8, 13)), (False, (0, 2, 5, 10))], ids=["batchnorm", "plain"]
)
def test_cnn_names_its_tensors_as_upstream_does(keys, batchnorm, modules):
    """Convolution, normalization, ReLU, pooling from the second block on; pooling, flattening, linear."""
    given = {"cnn_num_layers": 4, "cnn_padding": 1, "cnn_batchnorm": batchnorm, "bias": False}
    model = build("cnn", keys((3, 32, 32), **given), (3, 32, 32))
    assert [name for name, _ in model.model.named_modules() if name and list(model.model[int(name)].parameters())] == [
        str(index) for index in modules
    ]


def test_nin_is_as_upstream(keys):
    model = build("nin", keys((3, 32, 32), nin_width=20, nin_num_layers=3, bias=True), (3, 32, 32))
    convolutions = {name: part for name, part in model.model.named_modules() if isinstance(part, nn.Conv2d)}
    assert list(convolutions) == ["0", "2", "4", "8", "10", "12", "16", "18", "20", "24"]
    assert all(part.padding == (1, 1) for part in convolutions.values())
    blocks = (3 * 9 + 1) * 20 + 2 * (20 * 9 + 1) * 20 + 3 * 2 * (20 + 1) * 20
    assert count(model) == blocks + (20 + 1) * 10
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_nin_computes_its_formula(keys):
    model = build("nin", keys(nin_width=5, nin_num_layers=1, nin_padding=0, bias=True), (1, 8, 8)).eval()
    first, second, third, last = (part for part in model.modules() if isinstance(part, nn.Conv2d))
    x = torch.randn(3, 1, 8, 8)
    hidden = torch.conv2d(x, first.weight, first.bias, stride=2).relu()
    for part in (second, third):
        hidden = (torch.einsum("nchw,oc->nohw", hidden, part.weight[:, :, 0, 0]) + part.bias[:, None, None]).relu()
    pooled = hidden.amax(dim=(2, 3))
    assert torch.allclose(model(x), pooled @ last.weight[:, :, 0, 0].T + last.bias, atol=1e-6)


def test_dropout_of_nin_is_off_in_eval_mode(keys):
    model = build("nin", keys(nin_width=8, dropout_prob=0.5), (1, 8, 8))
    x = torch.randn(4, 1, 8, 8)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "given", "twin", "head"),
    [
        ("resnet", {"resnet_version": 18}, "resnet18", "fc"),
        ("resnet", {"resnet_version": 50}, "resnet50", "fc"),
        ("vit", {"vit_version": "base"}, "vit_b_16", "heads"),
        ("swin", {"swin_version": "tiny"}, "swin_t", "head"),
    ],
)
def test_torchvisions_networks_with_a_head_of_their_own(keys, name, given, twin, head):
    shape = (3, 32, 32)
    model = build(name, keys(shape, **{**SMALL[name], **given}), shape)
    sized = {"image_size": 32} if name == "vit" else {}
    theirs = getattr(torchvision.models, twin)(num_classes=10, **sized).eval()
    ours = {key.replace("fc.1.", "fc."): value for key, value in model.model.state_dict().items()}
    theirs.load_state_dict(ours)
    x = torch.randn(2, *shape)
    assert torch.equal(model.eval()(x), theirs(x))
    assert any(key.startswith(f"{head}.") for key in ours)


def test_resnet_takes_grey_images(keys):
    model = build("resnet", keys(**SMALL["resnet"]), (1, 8, 8))
    assert model.model.conv1.weight.shape == (64, 1, 7, 7) and model.model.fc[1].weight.shape == (10, 512)


@pytest.mark.long
@pytest.mark.parametrize("name", SMALL)
def test_same_seed_same_network(keys, name):
    shape = (3, 32, 32)
    first, second, other = (
        (torch.manual_seed(seed), state(build(name, keys(shape, **SMALL[name]), shape)))[1] for seed in (1, 1, 2)
    )
    assert not differing(first, second) and differing(first, other)


@pytest.mark.long
@pytest.mark.parametrize("name", QUICK)
def test_trainings_with_one_seed_agree(configure, name):
    args = configure(model=name, max_epochs=1, limit_train_batches=2, dropout_prob=0.5, **SMALL[name])
    start = {}
    (first, _, tested), (second, _, again) = (
        main(args, load_model(name), Digits, model_hooks=[lambda model: start.update(state(model))], verbose=False)
        for _ in range(2)
    )
    assert not differing(state(first), state(second)) and differing(start, state(first)) and tested == again


def test_cnn_learns(configure):
    args = configure(model="cnn", max_epochs=3, **SMALL["cnn"])
    _, _, tested = main(args, load_model("cnn"), Digits, verbose=False)
    assert tested[0]["test_acc"] > 0.3


class TestFitTo:
    def test_leaves_statistics_modes_and_random_numbers(self, keys):
        model = build("cnn", keys(**SMALL["cnn"]), (1, 8, 8))
        model.model[1].eval()
        before, modes = state(model), [part.training for part in model.modules()]
        torch.manual_seed(3)
        expected = torch.rand(3)
        torch.manual_seed(3)
        model.fit_to(torch.ones(1, 8, 8))
        assert torch.equal(torch.rand(3), expected)
        assert not differing(before, state(model))
        assert [part.training for part in model.modules()] == modes and not all(modes)

    def test_a_first_sample_leaves_the_statistics_too(self, keys):
        model = load_model("cnn")(keys(**SMALL["cnn"]))
        assert model.has_uninitialized_params()
        model.fit_to(torch.randn(1, 8, 8))
        assert not model.has_uninitialized_params() and int(model.model[1].num_batches_tracked) == 0

    @pytest.mark.parametrize("stage", ["fit", "validate", "test"])
    def test_a_trainer_alone_shapes_lazy_layers(self, configure, stage):
        args = configure(val_split=0.2, **SMALL["cnn"])
        data = Digits(args)
        args.num_classes, args.input_channels = 10, 1
        model = load_model("cnn")(args)
        trainer = Trainer(
            max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu"
        )
        getattr(trainer, stage)(model, datamodule=data)
        assert not model.has_uninitialized_params() and model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)

    def test_scores_of_another_number(self, keys):
        class Sequence(Model):
            def __init__(self, args):
                super().__init__(args)
                self.model = nn.Identity()

        with pytest.raises(UserError, match=r"Sequence returns outputs of shape \(3, 8\) .* a score for each of 10"):
            Sequence(keys()).fit_to(torch.zeros(3, 8))


@pytest.mark.parametrize("name", ["ffn", *QUICK])
def test_train_fc_only_trains_the_last_layer_alone(configure, name):
    last = {"ffn": "model.6.", "cnn": "model.9.", "nin": "model.16.", "resnet": "model.fc."}[name]
    start = {}
    given = {"model": name, "train_fc_only": True, "bias": True, "max_epochs": 1, "limit_train_batches": 2}
    args = configure(**given, **SMALL.get(name, {}))
    model, _, _ = main(
        args,
        load_model(name),
        Digits,
        model_hooks=[lambda model: start.update(state(model))],
        verbose=False,
    )
    changed = {key for key in differing(start, state(model)) if "running_" not in key and "num_batches" not in key}
    assert changed == {key for key in start if key.startswith(last)} and len(changed) == 2


def test_a_trained_network_comes_back_from_its_file(configure, tmp_path):
    keys = {"model": "cnn", "max_epochs": 2, **SMALL["cnn"]}
    model, _, tested = main(configure(**keys), load_model("cnn"), Digits, verbose=False)
    torch.save(model.model.state_dict(), tmp_path / "cnn.pt")
    args = configure(**keys, eval_only=True, weights=str(tmp_path / "cnn.pt"), seed=7)
    again, _, retested = main(args, load_model("cnn"), Digits, verbose=False)
    assert not differing(state(model.model), state(again.model)) and retested == tested


@pytest.mark.parametrize("only_last", [False, True])
def test_l1_penalty_of_resnet(keys, only_last):
    model = build("resnet", keys(**SMALL["resnet"], resnet_l1_regularization=0.01, train_fc_only=only_last), (1, 8, 8))
    batch = (torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 3]))
    model.eval()
    penalized = model.step(batch, 0)["loss"]
    model.hparams["resnet_l1_regularization"] = 0.0
    plain = model.step(batch, 0)["loss"]
    chosen = model.model.fc if only_last else model.model
    norm = sum(float(parameter.detach().double().abs().sum()) for parameter in chosen.parameters())
    assert float(penalized.detach() - plain.detach()) == pytest.approx(0.01 * norm, rel=1e-4)


class TestOneLine:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"model": "cnn"}, r"CNN does not take samples of shape \(1, 8, 8\): .*; change its keys, or image_size"),
            ({"model": "vit"}, "input_channels: expected 3 with model vit, got 1: give --input_channels 3"),
            ({"model": "swin"}, "input_channels: expected 3 with model swin, got 1"),
            (
                {"model": "vit", "input_channels": 3, "image_size": 8},
                "image_size: expected 224 with vit_pretrained imagenet1k, got 8",
            ),
            (
                {"model": "vit", "input_channels": 3, "vit_pretrained": "none"},
                "image_size: expected a multiple of 16 for vit, got 8",
            ),
        ],
    )
    def test_data_that_do_not_fit(self, configure, given, message):
        args = configure(**given)
        with pytest.raises(UserError, match=message) as caught:
            main(args, load_model(args.model), Digits, verbose=False)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("shape", [(64,), (8, 8)])
    @pytest.mark.parametrize("name", SMALL)
    def test_samples_that_are_not_images(self, configure, tmp_path, shape, name):
        numbers = np.arange(40) % 2
        x = np.zeros((40, *shape))
        np.savez(tmp_path / "flat.npz", x_train=x, y_train=numbers, x_test=x, y_test=numbers)
        args = configure(model=name, datamodule="arrays", arrays_path=str(tmp_path / "flat.npz"))
        with pytest.raises(UserError, match=f"model: {name} takes images, but these samples are not of shape"):
            main(args, load_model(name), Arrays, verbose=False)

    @pytest.mark.parametrize(("name", "off"), [("resnet", "false"), ("vit", "none"), ("swin", "none")])
    def test_weights_that_cannot_be_downloaded(self, keys, monkeypatch, name, off):
        def refuse(*args, **kwargs):
            raise URLError("no network")

        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
        with pytest.raises(UserError, match=f"{name}_pretrained: the weights cannot be .* --{name}_pretrained {off}"):
            load_model(name)(keys((3, 224, 224)))

    @pytest.mark.parametrize(
        ("key", "value"), [("cnn_num_layers", 1), ("nin_width", 0), ("cnn_padding", -1), ("resnet_version", 20)]
    )
    def test_values_out_of_range(self, configure, key, value):
        with pytest.raises(UserError, match=f"^{key}"):
            configure(**{key: value})


def test_pretrained_weights_are_not_fetched_where_a_file_replaces_them(keys, monkeypatch):
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", None)
    load_model("resnet")(keys(weights="some.pt"))
    with pytest.raises(TypeError):
        load_model("resnet")(keys())


def test_model_keys_come_from_the_data(configure):
    given = configure()
    data = Digits(given)
    data.setup("fit")
    args = model_keys(given, data)
    assert (args.num_classes, args.ffn_input_dim, args.input_channels, args.image_size) == (10, 64, 1, 8)
    assert given.input_channels is None and not hasattr(given, "num_classes")
