"""Models by name, each imported only when it is chosen."""

from typing import TYPE_CHECKING, Any

from milkshake_mbp.framework.registry import import_path, load_class

if TYPE_CHECKING:
    from milkshake_mbp.framework.models.ffn import FFN
    from milkshake_mbp.framework.models.model import Model

__all__ = ["FFN", "MODELS", "Model", "load_model"]

MODELS: dict[str, str] = {
    "ffn": "milkshake_mbp.framework.models.ffn:FFN",
    "cnn": "milkshake_mbp.framework.models.cnn:CNN",
    "nin": "milkshake_mbp.framework.models.nin:NiN",
    "resnet": "milkshake_mbp.framework.models.resnet:ResNet",
    "vit": "milkshake_mbp.framework.models.vit:ViT",
    "swin": "milkshake_mbp.framework.models.swin:Swin",
    "convnextv2": "milkshake_mbp.framework.models.convnextv2:ConvNeXtV2",
    "bert": "milkshake_mbp.framework.models.bert:BERT",
}

_EXPORTS = {"FFN": MODELS["ffn"], "Model": "milkshake_mbp.framework.models.model:Model"}


def load_model(name: str) -> "type[Model]":
    """The model class that a configuration names; raises UserError as `load_class` does."""
    from milkshake_mbp.framework.models.model import Model

    return load_class("model", name, MODELS, Model)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return import_path(_EXPORTS[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
