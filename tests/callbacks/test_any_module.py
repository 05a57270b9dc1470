"""PruneCallback, SketchCallback and RewindCallback on modules of every kind."""

import math

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision import models
from torchvision.models.convnext import CNBlockConfig

from milkshake_mbp import PruneCallback, PruneRule, RewindCallback, SketchCallback
from milkshake_mbp.callbacks.prune import kernels_of
from milkshake_mbp.errors import UserError
from milkshake_mbp.reading import Kernel, Samples, measure, registered_kernels
from milkshake_mbp.theory.bounds import evaluate
from milkshake_mbp.theory.perturbation import default_step
from milkshake_mbp.theory.pruning import MaskDraw, keep_probability

pytestmark = pytest.mark.filterwarnings("ignore")

NORMS = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)


def small_resnet(blocks=(1, 1, 1, 1)):
    return models.ResNet(models.resnet.BasicBlock, list(blocks), num_classes=4)


SMALL = {
    "resnet": small_resnet,
    "vit": lambda: models.VisionTransformer(32, 16, 2, 2, 16, 32, num_classes=4),
    "swin": lambda: models.SwinTransformer([4, 4], 12, [2, 2], [1, 2], [2, 2], num_classes=4),
    "convnext": lambda: models.ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=4),
}
FULL = {
    "resnet18": (lambda: models.resnet18(num_classes=4), 21),
    "vit_b_16": (lambda: models.vit_b_16(num_classes=4, image_size=32), 50),
    "swin_t": (lambda: models.swin_t(num_classes=4), 53),
    "convnext_tiny": (lambda: models.convnext_tiny(num_classes=4), 59),
}


def images(count=12, size=32, channels=3):
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(count, channels, size, size, generator=generator), torch.arange(count) % 4)


def check_pruned(module, callback, report, before):
    """What has a mask is zero where it says so, everything else is as it was, and the report counts the zeros."""
    zeros = 0
    for name, parameter in module.named_parameters():
        mask = callback.masks.get(name, torch.ones_like(parameter, dtype=torch.bool))
        assert torch.equal(parameter, torch.where(mask, before[name], 0.0)), name
        zeros += int((~mask).sum())
    total = sum(parameter.numel() for parameter in module.parameters())
    pruned = sum(math.prod(layer.shape) for layer in report.layers)
    assert report.sparsity == pytest.approx(zeros / sum(mask.numel() for mask in callback.masks.values()))
    assert report.numbers_left_alone == total - pruned
    assert {name for name, _ in module.named_parameters()} == set(callback.masks) | set(report.left_alone)
    for prefix, part in module.named_modules():
        if isinstance(part, NORMS):
            assert f"{prefix}.weight" in report.left_alone
    assert all(module.get_parameter(name).ndim >= 2 for name in callback.masks)


def prune(build, data):
    torch.manual_seed(0)
    module = build()
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    callback = PruneCallback(d=1.0)
    report = callback.prune(module, data)
    check_pruned(module, callback, report, before)
    assert all(math.isfinite(value) for value in module(data.tensors[0][:2]).flatten().tolist())
    callback.restore(module)
    assert all(torch.equal(value, before[name]) for name, value in module.named_parameters())
    return module, report


@pytest.mark.parametrize("name", SMALL)
def test_networks_of_torchvision(name):
    module, report = prune(SMALL[name], images())
    # Algorithm 1 keeps χ of normal weights; what PyTorch initializes uniformly is pruned a little less.
    assert 0.3 < report.sparsity < 0.7
    assert not any("bias" in layer.name or "norm" in layer.name for layer in report.layers)
    # The order of a forward pass here is that of registration, so a notebook without data prunes the same.
    assert [kernel.parameter for kernel in registered_kernels(module)] == [
        kernel.parameter for kernel in kernels_of(module, Samples.of(images()))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_networks_of_torchvision_at_their_size(name):
    build, kernels = FULL[name]
    module, report = prune(build, images(4))
    assert len(report.layers) == kernels
    tables = ("class_token", "pos_embedding", "position_bias_table", "layer_scale")
    multiplied = [p for n, p in module.named_parameters() if p.ndim >= 2 and not n.endswith(tables)]
    assert sum(math.prod(layer.shape) for layer in report.layers) == sum(p.numel() for p in multiplied)


class Bare(nn.Module):
    """Attention by hand: parameters of no layer, an embedding of words and one of places, and a table that is added."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(20, 8), nn.Embedding(6, 8)
        self.query, self.key = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8, 8))
        self.offset = nn.Parameter(torch.randn(6, 8))
        self.norm, self.out = nn.LayerNorm(8), nn.Linear(8, 4)
        self.unused = nn.Linear(8, 8)

    def forward(self, tokens):
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1])) + self.offset
        scores = (x @ self.query) @ (x @ self.key).transpose(1, 2)
        return self.out(self.norm(scores.softmax(-1) @ x).mean(1))


def tokens(count=8):
    return TensorDataset(
        torch.randint(0, 20, (count, 6), generator=torch.Generator().manual_seed(0)), torch.arange(count) % 4
    )


def test_bare_parameters_and_embeddings():
    torch.manual_seed(0)
    callback = PruneCallback(d=2.0)
    report = callback.prune(Bare(), tokens())
    assert {layer.name for layer in report.layers} == {"words", "places", "query", "key", "out"}
    # Without samples a bare parameter cannot be told from a table, and what is not used from what is.
    assert {"offset", "norm.weight", "unused.weight", "out.bias"} <= set(report.left_alone)
    assert {kernel.layer for kernel in registered_kernels(Bare())} == {"words", "places", "out", "unused"}


def test_targets_that_bounds_cannot_read_do_not_matter():
    """A network whose outputs are not a row of logits for each sample is pruned without test errors."""
    inputs = torch.randn(6, 3, 8, 8)
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    report = PruneCallback(d=1.0).prune(module, TensorDataset(inputs, torch.randint(0, 2, (6, 8, 8))))
    assert len(report.layers) == 2 and report.unpruned_test_error is None


def test_a_hugging_face_bert():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=4
    )

    class Logits(nn.Module):
        """As upstream Milkshake calls it: tokens, mask and types in one tensor."""

        def __init__(self):
            super().__init__()
            self.model = transformers.BertForSequenceClassification(config)

        def forward(self, x):
            return self.model(input_ids=x[:, :, 0], attention_mask=x[:, :, 1], token_type_ids=x[:, :, 2]).logits

    torch.manual_seed(0)
    text = torch.randint(1, 50, (8, 7))
    data = TensorDataset(torch.stack([text, torch.ones_like(text), torch.zeros_like(text)], 2), torch.arange(8) % 4)
    module, callback = Logits(), PruneCallback(d=1.0)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    report = callback.prune(module, data)
    check_pruned(module, callback, report, before)
    names = {layer.name.removeprefix("model.bert.") for layer in report.layers}
    assert {f"embeddings.{kind}_embeddings" for kind in ("word", "position", "token_type")} <= names
    assert {f"encoder.layer.1.attention.self.{part}" for part in ("query", "key", "value")} <= names
    assert len(names) == 3 + 2 * 6 + 2


# The rule


def kernels():
    return [Kernel(f"net.{name}", f"net.{name}.weight") for name in ("conv1", "conv2", "fc")]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (PruneRule(), (1.0, 1.0, 1.0)),
        (PruneRule(include=["net.conv*"]), (1.0, 1.0, None)),
        (PruneRule(exclude=["*.fc.weight"]), (1.0, 1.0, None)),
        (PruneRule(include=["*conv*"], exclude=["*2"]), (1.0, None, None)),
        (PruneRule(strengths={"*conv*": 3.0, "*2": 0.0}), (3.0, 0.0, 1.0)),
        (PruneRule(exclude="net.conv1", strengths={"*": 2}), (None, 2.0, 2.0)),
    ],
)
def test_rule(rule, expected):
    assert rule.of(kernels(), 1.0) == expected


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"exclude": ["fc"]}, 'exclude: no layer is called "fc"; did you mean "net.fc"\\? there are net.conv1'),
        ({"include": ["*.head"]}, 'include: no layer is called "\\*.head"'),
        ({"strengths": {"x": 1.0}}, 'strengths: no layer is called "x"'),
        ({"exclude": ["*"]}, "leaves no layer to prune"),
    ],
)
def test_a_rule_that_fits_nothing(rule, words):
    with pytest.raises(UserError, match=words) as raised:
        PruneRule(**rule).of(kernels(), 1.0)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("d", [-1.0, math.nan, "auto", "much"])
def test_bad_strengths(d):
    with pytest.raises(UserError, match="strength of x"):
        PruneRule(strengths={"x": d})


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(54, 4)
        )

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


@pytest.fixture
def fit(tmp_path):
    def run(module, *callbacks, checkpoint=None, **keys):
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
        trainer = Trainer(max_epochs=2, callbacks=list(callbacks), default_root_dir=tmp_path, **quiet, **keys)
        trainer.fit(module, DataLoader(images(16, 8), 8), ckpt_path=checkpoint)
        return trainer

    return run


def test_layers_left_alone_and_strengths_of_their_own(fit):
    rule = PruneRule(exclude=["net.4"], strengths={"net.0": 4.0})
    module, callback = Net(), PruneCallback(d=1.0, rule=rule)
    fit(module, callback)
    assert set(callback.masks) == {"net.0.weight"} and callback.report.kernels_left_alone == ("net.4",)
    (layer,) = callback.report.layers
    assert layer.d == 4.0 and callback.report.d == 1.0
    assert layer.predicted_sparsity == pytest.approx((1 - keep_probability(4.0)) * (6 * 27 - 6) / (6 * 27))
    zeros = int((module.net[0].weight == 0).sum())
    assert zeros > 60 and callback.report.sparsity == pytest.approx(zeros / (6 * 27 + 4 * 54))
    assert bool((module.net[4].weight != 0).all())


def test_an_unknown_layer_is_refused_before_training(fit):
    module = Net()
    start = module.net[0].weight.detach().clone()
    for callback in (PruneCallback(rule=PruneRule(["net.9"])), RewindCallback(rule=PruneRule(["net.9"]))):
        with pytest.raises(UserError, match=r'"net\.9"'):
            fit(module, callback)
    assert torch.equal(module.net[0].weight, start)


def test_the_same_masks_whatever_the_rule_and_the_same_in_the_bounds():
    module, data = Net(), images(16, 8)
    rule = PruneRule(exclude=["net.0"], strengths={"net.4": 3.0})
    measured = measure(module, data, prune_d=1.0, rule=rule, stability=False)
    weights = [kernel.matrix(module).clone() for kernel in registered_kernels(module)]
    expected = MaskDraw(weights).masks([0.0, 3.0])
    assert measured.strengths == (0.0, 3.0)
    assert [layer.nonzeros for layer in measured.pruned] == [int(mask.sum()) for mask in expected]
    callback = PruneCallback(d=1.0, rule=rule)
    callback.prune(module, data)
    assert torch.equal(callback.masks["net.4.weight"], expected[1])


def test_auto_is_for_a_whole_network():
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 4, bias=False))
    with pytest.raises(UserError, match="auto is one strength for all layers"):
        PruneCallback(d="auto", rule=PruneRule(strengths={"1": 1.0})).prune(module, images(8, 8))


def test_masks_of_a_convolutional_network_survive_checkpoints_and_refits(fit, tmp_path):
    module, callback = Net(), PruneCallback(d=2.0, rule=PruneRule(exclude=["net.4"]))
    trainer = fit(module, callback)
    masks = {name: mask.clone() for name, mask in callback.masks.items()}
    trainer.save_checkpoint(tmp_path / "pruned.ckpt")
    fit(module, callback)
    assert not module.net[0].weight[~masks["net.0.weight"]].any()
    other, resumed = Net(), PruneCallback(d=2.0, rule=PruneRule(exclude=["net.4"]))
    state = torch.load(tmp_path / "pruned.ckpt", weights_only=True)
    other.load_state_dict(state["state_dict"])
    assert all(torch.equal(state["callbacks"]["PruneCallback"]["masks"][name], mask) for name, mask in masks.items())
    resumed.masks = dict(state["callbacks"]["PruneCallback"]["masks"])
    fit(other, resumed)
    assert not other.net[0].weight[~masks["net.0.weight"]].any()
    assert bool(other.net[0].weight[masks["net.0.weight"]].all())


# Rewinding and sketching


def test_statistics_of_a_normalization_are_rewound(fit):
    module, rewind = Net(), RewindCallback(rate=0.5)
    start = {name: value.clone() for name, value in module.state_dict().items()}
    fit(module, rewind)
    assert not torch.equal(module.net[1].running_mean, start["net.1.running_mean"])
    rewind.advance(module)
    for name, value in module.state_dict().items():
        assert torch.equal(value, start[name] * rewind.masks.get(name, 1)), name
    assert set(rewind.masks) == {"net.0.weight", "net.4.weight"}


def test_a_step_is_rewound_with_its_statistics(fit):
    module, rewind = Net(), RewindCallback(rate=0.5, rewind_steps=2)
    fit(module, rewind)
    rewind.advance(module)
    assert int(module.net[1].num_batches_tracked) == 2


def test_rounds_leave_alone_what_the_rule_does(fit):
    module, rewind = Net(), RewindCallback(rate=0.5, rule=PruneRule(exclude=["net.4"]))
    fit(module, rewind)
    fit(module, rewind)
    assert set(rewind.masks) == {"net.0.weight"}
    assert bool((module.net[0].weight != 0).eq(rewind.masks["net.0.weight"]).all())
    assert bool((module.net[4].weight != 0).all())
    with pytest.raises(UserError, match="expected no strengths"):
        RewindCallback(rule=PruneRule(strengths={"*": 1.0}))


def test_weights_to_start_from_that_lack_a_parameter():
    module = Net()
    with pytest.raises(UserError, match=r"do not contain net\.1\.weight"):
        RewindCallback().begin(module, 1, {}, {"net.0.weight": module.net[0].weight})


def test_kernels_of_convolutions_are_sketched():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(4, 20, 3, bias=False), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(20, 4))
    step = default_step(module[0].weight)
    PruneCallback(d=200.0).prune(module)
    layers = SketchCallback(seed=3).measure(module, steps=[step, step]).layers
    assert layers["0"].shape == (20, 36) and layers["0"].certified and layers["0"].seed == 3
    assert layers["0"].nonzeros == int((module[0].weight / step).round().count_nonzero())


def test_numbers_of_a_normalization_and_a_seed_are_charged():
    """Gains, shifts, means and variances at 32 bits each, biases too; a seed of ensembles by Elias' gamma code."""
    module, data = Net(), images(16, 8)
    module.eval()
    measured = measure(module, data, stability=False)
    assert measured.plain == 4 * 6 + 4
    PruneCallback(d=1.0).prune(module)
    bits = {}
    for seed in (0, 6):
        sketches = SketchCallback(seed=seed).measure(module, steps=[layer.step for layer in measured.pruned])
        rows = {row.name: row for row in evaluate(measured.with_sketches(list(sketches.layers.values())), "rigorous")}
        bits[seed] = rows["sketched"].terms["bits"]
    # ⌊log₂ 7⌋ = 2, so 5 bits say 6.
    assert bits[6] == pytest.approx(bits[0] + 5)
    structure = measured.structure / math.log(2)
    assert rows["dense"].terms["bits"] == pytest.approx(8 + structure + 32 * (4 * 6 + 4 + 6 * 27 + 4 * 54))
