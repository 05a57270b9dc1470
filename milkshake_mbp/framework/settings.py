"""Every key of a configuration: its name, type, default, meaning and range.

A group is a dataclass whose fields all have defaults. The first line of its docstring is its title in the
help, the Attributes section describes its keys, and ``__post_init__`` refuses values out of range.
`immaterial`, `newer` or `recipe` around a default says how the key affects results and the run's name.
"""

import ast
import builtins
import difflib
import functools
import inspect
import math
import operator
import re
import typing
from collections.abc import Callable, KeysView
from dataclasses import MISSING, Field, dataclass, field, fields, make_dataclass
from importlib.util import find_spec
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import docstring_parser

from milkshake_mbp.errors import UserError

# Keys of any group whose value is a path, or a list of them.
PATHS = frozenset({"arrays_path", "data_dir", "initial_weights", "out_dir", "runs", "wandb_dir", "weights"})


def immaterial(default: Any) -> Any:
    """The default of a key that changes no result: runs that differ only in such keys compute the same numbers."""
    return key_field(default, "immaterial")


def newer(default: Any) -> Any:
    """The default of a key that was added later: it is part of a run's name only if set, so older names stay valid."""
    return key_field(default, "newer")


def recipe(default: Any) -> Any:
    """The default of a key of the training recipe: runs that differ in such a key are not pooled in a table."""
    return key_field(default, "recipe")


def key_field(default: Any, role: str = "") -> Any:
    """A field of a group that has this default, a copy of it if it is a list."""
    metadata = {"role": role}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def default_of(item: Field) -> Any:
    """The default of a key."""
    return item.default if item.default_factory is MISSING else item.default_factory()


def keys_of(*groups: type, role: str | None = None) -> KeysView[str]:
    """The keys of groups, in order; with a role, those that were declared with the function of that name."""
    found = {item.name: item.metadata.get("role") for group in groups for item in fields(group)}
    return {key: its for key, its in found.items() if role in (None, its)}.keys()


def union_members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union type; of another type, itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def require(settings: object, expected: str, holds: Callable[[Any], bool], *keys: str) -> None:
    """Check the values of ``keys`` in ``settings`` with ``holds``; None, a value that was not given, passes.

    Raises:
        UserError: If a value fails, saying what was ``expected``.
    """
    for key in keys:
        value = getattr(settings, key)
        if value is not None and not holds(value):
            raise UserError(f"{key}: expected {expected}, got {value}")


@dataclass(frozen=True)
class Data:
    """Data: which dataset, and how it is split and batched.

    Attributes:
        datamodule: Name of the dataset, digits, mnist, binary_mnist, fashion_mnist, cifar10, cifar100, svhn or arrays,
            or your own class as package.module:Class.
        data_dir: Folder of the datasets; downloads go there.
        batch_size: Number of samples in a batch.
        val_split: Share of the training set held out for validation.
        balanced_sampler: Whether training draws all classes equally often; group draws all groups equally often.
        num_workers: Number of processes that load data; only used for data that are read one sample at a time.
        persistent_workers: Whether these processes are kept from epoch to epoch.
        data_augmentation: Whether training images are randomly transformed.
        image_size: Height and width to which images are resized, in pixels; by default the dataset's own, or 224 if
            vit_pretrained or convnextv2_pretrained selects weights that need this size.
        input_channels: Number of channels of an image; by default the dataset's own.
        label_noise: Probability that a training label is replaced by a wrong one.
        arrays_path: Path of the .npz file that the "arrays" dataset reads.
        train_samples: Number of training samples to use, drawn by the seed; by default all that are not held out.
    """

    datamodule: str = "digits"
    data_dir: str = immaterial("data")
    batch_size: int = recipe(256)
    val_split: float = recipe(0.2)
    balanced_sampler: bool | Literal["class", "group"] = newer(False)
    num_workers: int = immaterial(0)
    persistent_workers: bool = immaterial(False)
    data_augmentation: bool = recipe(False)
    image_size: int | None = None
    input_channels: int | None = None
    label_noise: float = recipe(0.0)
    arrays_path: str | None = None
    train_samples: int | None = newer(None)

    def __post_init__(self) -> None:
        require(self, "at least 1", lambda x: x >= 1, "batch_size", "image_size", "input_channels", "train_samples")
        require(self, "at least 0", lambda x: x >= 0, "num_workers")
        require(self, "at least 0 and below 1", lambda x: 0 <= x < 1, "val_split")
        require(self, "a probability from 0 to 1", lambda x: 0 <= x <= 1, "label_noise")


PRETRAINED_SIZE = 224  # pixels a side, of the images that published weights were trained on


def pretrained_size(args: Any) -> int | None:
    """The image size where none is given: that of the weights, for a model that takes or needs no other; or None."""
    model = getattr(args, "model", None)
    pretrained = getattr(args, f"{model}_pretrained", "none") != "none" if model in ("vit", "convnextv2") else False
    return PRETRAINED_SIZE if pretrained else None


# The key that says how large a model is, by the model's name. A model's own keys start with its name.
SIZES = {
    "ffn": "ffn_hidden_dim",
    "cnn": "cnn_initial_width",
    "nin": "nin_width",
    "resnet": "resnet_version",
    "vit": "vit_version",
    "swin": "swin_version",
    "convnextv2": "convnextv2_version",
    "bert": "bert_version",
}


def model_of(key: str) -> str | None:
    """The model whose own key this is; None if it is not one model's."""
    prefix = key.partition("_")[0]
    return prefix if prefix in SIZES else None


@dataclass(frozen=True)
class Network:
    """Network: its architecture, and the weights it starts from.

    Attributes:
        model: Name of the architecture, ffn, cnn, nin, resnet, vit, swin, convnextv2 or bert, or your own class as
            package.module:Class.
        ffn_input_dim: Number of inputs of ffn; by default the number of values in a sample.
        ffn_hidden_dim: Width of the hidden layers of ffn.
        ffn_num_layers: Number of weight matrices of ffn.
        ffn_activation: Activation function between the layers of ffn.
        cnn_initial_width: Number of channels after the first layer of cnn; each further convolution doubles it.
        cnn_num_layers: Number of layers of cnn; the last one is linear.
        cnn_kernel_size: Height and width of the kernels of cnn.
        cnn_padding: Zero padding of the convolutions of cnn, in pixels.
        cnn_batchnorm: Whether batch normalization follows each convolution of cnn.
        nin_width: Number of channels of nin (network in network).
        nin_num_layers: Number of blocks of nin; each block has three convolutions.
        nin_padding: Zero padding of the convolutions of nin, in pixels.
        resnet_version: Number of layers of the ResNet.
        resnet_pretrained: Whether to start from torchvision's ImageNet weights; downloaded if necessary.
        resnet_l1_regularization: Strength of the L1 penalty on the trained parameters.
        resnet_small_input: Whether the first convolution is 3 by 3 without pooling, for images of about 32 pixels.
        vit_version: Size of the vision transformer (patches of 16 pixels).
        vit_pretrained: Initial weights; downloaded if necessary; imagenet21k needs the package transformers.
        vit_type: Whether the outputs are a score for each class, or the features of the last layer.
        swin_version: Size of the Swin transformer; large needs the package transformers.
        swin_pretrained: Initial weights; downloaded if necessary; imagenet21k needs the package transformers.
        swin_type: Whether the outputs are a score for each class, or the features of the last layer.
        convnextv2_version: Size of the pretrained ConvNeXt V2; needs the package transformers.
        convnextv2_pretrained: Initial weights; downloaded if necessary.
        convnextv2_initial_width: Number of channels of the first stage; only without pretraining.
        convnextv2_stage124_depth: Number of blocks of the first, second and fourth stage; only without pretraining.
        convnextv2_stage3_depth: Number of blocks of the third stage; only without pretraining.
        bert_version: Size of the pretrained BERT; needs the package transformers.
        bert_pretrained: Whether to start from the published weights; downloaded if necessary.
        bert_width: Hidden width of BERT, a multiple of 64; only without pretraining.
        bert_depth: Number of layers of BERT; only without pretraining.
        bias: Whether the layers of ffn, cnn and nin have biases.
        dropout_prob: Probability that dropout sets a hidden unit to zero; cnn has no dropout.
        train_fc_only: Whether to train only the last layer.
        weights: Checkpoint to start from; empty for a new initialization.
        strict: Whether weights must fit the model; if false, tensors that do not fit are skipped and listed.
    """

    model: str = recipe("ffn")
    ffn_input_dim: int | None = None
    ffn_hidden_dim: int = 256
    ffn_num_layers: int = recipe(3)
    ffn_activation: Literal["relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid"] = recipe("relu")
    cnn_initial_width: int = 32
    cnn_num_layers: int = 5
    cnn_kernel_size: int = 3
    cnn_padding: int = 0
    cnn_batchnorm: bool = True
    nin_width: int = 192
    nin_num_layers: int = 2
    nin_padding: int = 1
    resnet_version: Literal[18, 34, 50, 101, 152] = 18
    resnet_pretrained: bool = True
    resnet_l1_regularization: float = 0.0
    resnet_small_input: bool = False
    vit_version: Literal["base", "large"] = "base"
    vit_pretrained: Literal["none", "imagenet1k", "imagenet21k"] = "imagenet1k"
    vit_type: Literal["classifier", "feature_extractor"] = "classifier"
    swin_version: Literal["tiny", "small", "base", "large"] = "base"
    swin_pretrained: Literal["none", "imagenet1k", "imagenet21k"] = "imagenet1k"
    swin_type: Literal["classifier", "feature_extractor"] = "classifier"
    convnextv2_version: Literal["atto", "femto", "pico", "nano", "tiny", "base", "large", "huge"] = "base"
    convnextv2_pretrained: Literal["none", "imagenet1k", "imagenet22k"] = "imagenet1k"
    convnextv2_initial_width: int = 96
    convnextv2_stage124_depth: int = 3
    convnextv2_stage3_depth: int = 9
    bert_version: Literal["tiny", "mini", "small", "medium", "base", "large"] = "base"
    bert_pretrained: bool = True
    bert_width: int = 768
    bert_depth: int = 12
    bias: bool = recipe(True)
    dropout_prob: float = recipe(0.0)
    train_fc_only: bool = newer(False)
    weights: str = ""
    strict: bool = newer(True)

    def __post_init__(self) -> None:
        require(self, "at least 1", lambda x: x >= 1, "ffn_input_dim", "ffn_hidden_dim", "ffn_num_layers")
        require(self, "at least 1", lambda x: x >= 1, "cnn_initial_width", "cnn_kernel_size")
        require(self, "at least 2", lambda x: x >= 2, "cnn_num_layers")
        require(self, "at least 1", lambda x: x >= 1, "nin_width", "nin_num_layers")
        require(self, "at least 0", lambda x: x >= 0, "cnn_padding", "nin_padding")
        require(self, "at least 1", lambda x: x >= 1, "convnextv2_initial_width", "convnextv2_stage124_depth")
        require(self, "at least 1", lambda x: x >= 1, "convnextv2_stage3_depth", "bert_depth")
        # BERT's heads are of 64 numbers in every published size.
        require(self, "a multiple of 64", lambda x: x >= 64 and x % 64 == 0, "bert_width")
        require(self, "a finite number, at least 0", lambda x: 0 <= x < math.inf, "resnet_l1_regularization")
        require(self, "at least 0 and below 1", lambda x: 0 <= x < 1, "dropout_prob")


@dataclass(frozen=True)
class Optimization:
    """Optimization: the loss, the optimizer and its learning rate.

    Attributes:
        optimizer: Name of the optimizer.
        lr: Learning rate at the start, or after warm-up.
        momentum: Momentum of SGD.
        weight_decay: Strength of the squared (L2) penalty on the weights.
        lr_scheduler: How the learning rate changes from epoch to epoch.
        lr_steps: Epochs after which the "step" scheduler multiplies the learning rate by lr_drop.
        lr_drop: Factor of each such step; with the "linear" scheduler, last learning rate divided by the first.
        lr_warmup_epochs: Epochs over which "cosine_warmup" raises the learning rate.
        loss: Loss that training minimizes.
        class_weights: Weight of each class in cross_entropy; by default all weights are equal.
        label_smoothing: Weight moved from the true class to the uniform distribution in cross_entropy.
        until_loss: Training loss (in eval mode, at the end of an epoch) at which training stops before max_epochs.
    """

    optimizer: Literal["adam", "adamw", "sgd"] = recipe("sgd")
    lr: float = recipe(0.02)
    momentum: float = recipe(0.9)
    weight_decay: float = recipe(1e-4)
    lr_scheduler: Literal["cosine", "cosine_warmup", "linear", "step"] = recipe("step")
    lr_steps: list[int] = recipe([])
    lr_drop: float = recipe(0.1)
    lr_warmup_epochs: int = recipe(0)
    loss: Literal["cross_entropy", "mse"] = recipe("cross_entropy")
    class_weights: list[float] = newer([])
    label_smoothing: float = recipe(0.0)
    until_loss: float | None = newer(None)

    def __post_init__(self) -> None:
        require(self, "a finite number above 0", lambda x: 0 < x < math.inf, "lr", "lr_drop", "until_loss")
        require(self, "a finite number, at least 0", lambda x: 0 <= x < math.inf, "weight_decay")
        require(self, "at least 0", lambda x: x >= 0, "lr_warmup_epochs")
        require(self, "at least 0 and below 1", lambda x: 0 <= x < 1, "momentum", "label_smoothing")
        require(self, "epochs of at least 1", lambda steps: all(x >= 1 for x in steps), "lr_steps")
        require(
            self,
            "finite numbers, at least 0 and some above",
            lambda weights: not weights or (all(0 <= x < math.inf for x in weights) and any(weights)),
            "class_weights",
        )
        if self.class_weights and self.loss == "mse":
            raise UserError("class_weights: they weight cross_entropy, not mse: leave one of the two keys out")


@dataclass(frozen=True)
class Run:
    """Run: seed, output, metrics, checkpoints and logging.

    Attributes:
        seed: Seed of every random choice.
        out_dir: Folder under which results are written.
        metrics: Metrics logged in every epoch: loss, acc, acc5, acc_by_class, acc5_by_class, acc_by_group,
            acc5_by_group, worst_group_acc, and the names of numbers that the step of your own model returns.
        ckpt_every_n_epochs: Epochs between checkpoints that are kept; the best and the last are also kept.
        ckpt_every_n_steps: Optimizer steps between checkpoints that are kept; replaces ckpt_every_n_epochs.
        check_val_every_n_steps: Batches between validations, across epochs; replaces check_val_every_n_epoch.
        resume_training: Whether to continue the training of the checkpoint in weights, with its optimizer state.
        eval_only: Whether to skip training and only evaluate.
        no_test: Whether to leave the test set unused.
        tensorboard: Whether to log to TensorBoard; by default if it is installed and wandb is false.
        wandb: Whether to log to Weights & Biases.
        wandb_dir: Folder for the files of Weights & Biases.
        wandb_project: Project of Weights & Biases that the run belongs to.
        debug: Whether an error shows its traceback instead of one line.
    """

    seed: int = 1
    out_dir: str = immaterial("out")
    metrics: list[str] = field(default_factory=lambda: ["loss", "acc", "acc_by_class"])
    ckpt_every_n_epochs: int = immaterial(10)
    ckpt_every_n_steps: int | None = immaterial(None)
    check_val_every_n_steps: int | None = newer(None)
    resume_training: bool = immaterial(False)
    eval_only: bool = False
    no_test: bool = False
    tensorboard: bool | None = immaterial(None)
    wandb: bool = immaterial(False)
    wandb_dir: str = immaterial("wandb")
    wandb_project: str = immaterial("milkshake_mbp")
    debug: bool = immaterial(False)

    def __post_init__(self) -> None:
        require(self, "at least 0 and below 2**32", lambda x: 0 <= x < 2**32, "seed")
        require(self, "at least 1", lambda x: x >= 1, "ckpt_every_n_epochs", "ckpt_every_n_steps")
        require(self, "at least 1", lambda x: x >= 1, "check_val_every_n_steps")


_SET_BY_MAIN = {"callbacks", "default_root_dir", "enable_checkpointing", "logger", "plugins"}
_TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": 10,
    "devices": 1,
    "deterministic": True,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
}
_TRAINER_ROLES: dict[str, Callable[[Any], Any]] = {
    "enable_model_summary": immaterial,
    "enable_progress_bar": immaterial,
    "limit_train_batches": recipe,
    "log_every_n_steps": immaterial,
    "max_epochs": recipe,
    "precision": recipe,
    "profiler": immaterial,
}


# What the annotations of the Trainer leave open, or name by an alias.
_CHOICES: dict[str, Any] = {
    "accelerator": Literal["auto", "gpu", "cpu", "cuda", "mps", "tpu"],
    "deterministic": bool | Literal["warn"] | None,
    "gradient_clip_algorithm": Literal["norm", "value"] | None,
    "precision": Literal[64, 32, 16]
    | Literal["transformer-engine", "transformer-engine-float16", "16-true", "16-mixed"]
    | Literal["bf16-true", "bf16-mixed", "32-true", "64-true", "64", "32", "16", "bf16"]
    | None,
    "profiler": Literal["simple", "advanced", "pytorch", "xla"] | None,
}


def _plain(hint: Any) -> Any:
    """``hint`` reduced to what a line of text can hold; NoneType if nothing is left."""
    plain = (bool, int, float, list[int], str, NoneType)
    kept = [member for member in union_members(hint) if member in plain or get_origin(member) is Literal]
    # Text takes anything, so it must be tried last.
    kept.sort(key=lambda member: member is str)
    return functools.reduce(operator.or_, kept or [NoneType])


def _first_sentence(text: str | None) -> str:
    """The first sentence of a reStructuredText paragraph, in one line and without its markup."""
    sentence = re.split(r"(?<=\.)\s+(?=[A-Z])", text or "", maxsplit=1)[0]
    return re.sub(r"(:\w+:)?`+~?", "", " ".join(sentence.split()))


# What its docstring leaves open.
_MEANINGS = {"strategy": "How devices share the work: auto, ddp, fsdp, deepspeed or another strategy of Lightning."}


class _Names(dict[str, Any]):
    """What the names in an annotation stand for; a class that no text can hold where they are Lightning's own."""

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            raise KeyError(name)
        return getattr(typing, name, None) or type(name, (), {})


def _trainer() -> Callable[..., None]:
    """A function with the signature and the docstring of the installed Lightning's Trainer.

    They are read from its source. Its import takes twice as long as torch's, and help or a refusal needs no more.
    """
    lightning = find_spec("pytorch_lightning")
    if lightning is None or lightning.origin is None:
        raise ModuleNotFoundError("pytorch_lightning is not installed")
    source = Path(lightning.origin).parent / "trainer" / "trainer.py"
    try:
        return _signature_in(source)
    except (OSError, SyntaxError, ValueError):  # a Lightning that keeps it elsewhere
        from pytorch_lightning import Trainer

        return Trainer.__init__


def _signature_in(source: Path) -> Callable[..., None]:
    (trainer,) = (
        node
        for node in ast.parse(source.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == "Trainer"
    )
    (init,) = (node for node in trainer.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    init.decorator_list, init.body = [], init.body[:1]
    names = _Names()
    exec(compile(ast.Module([init], []), str(source), "exec"), {}, names)
    return names["__init__"]


def _require_strategy(name: str) -> None:
    if name == "auto":
        return
    from pytorch_lightning.strategies import StrategyRegistry

    known = ["auto", *sorted(StrategyRegistry.available_strategies())]
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1)
        advice = f'; did you mean "{nearest[0]}"?' if nearest else ""
        raise UserError(f'strategy: expected {" or ".join(known)}, got "{name}"{advice}')


def _trainer_flags() -> type:
    """A group with the flags of the installed Lightning's Trainer, so that new ones need no line here."""
    trainer = _trainer()
    hints = get_type_hints(trainer)
    flags = [
        (name, hint, _TRAINER_ROLES.get(name, key_field)(_TRAINER_DEFAULTS.get(name, parameter.default)))
        for name, parameter in inspect.signature(trainer).parameters.items()
        if name in hints
        and name not in _SET_BY_MAIN
        and (hint := _CHOICES.get(name) or _plain(hints[name])) is not NoneType
    ]
    described = docstring_parser.parse(trainer.__doc__ or "").params
    meanings = {param.arg_name: _first_sentence(param.description) for param in described} | _MEANINGS
    lines = [f"    {name}: {meaning}" for name, meaning in meanings.items()]

    def post_init(self: object) -> None:
        require(self, "at least 1, or -1 for no limit", lambda x: x >= 1 or x == -1, "max_epochs", "max_steps")
        require(self, "at least 1", lambda x: x >= 1, "accumulate_grad_batches", "check_val_every_n_epoch", "num_nodes")
        require(self, "at least 0", lambda x: x >= 0, "gradient_clip_val", "log_every_n_steps", "overfit_batches")
        limits = [name for name in keys_of(type(self)) if name.startswith("limit_")]
        require(self, "a whole number, or a share up to 1", lambda x: x >= 0 and (x <= 1 or x == int(x)), *limits)
        _require_strategy(getattr(self, "strategy", "auto"))

    doc = "\n".join(["Trainer: flags of Lightning's Trainer.", "", "Attributes:", *lines])
    namespace = {"__doc__": doc, "__post_init__": post_init}
    return make_dataclass("TrainerFlags", flags, namespace=namespace, frozen=True)


TrainerFlags = _trainer_flags()
