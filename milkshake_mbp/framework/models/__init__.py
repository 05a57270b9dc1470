"""Models by name."""

from milkshake_mbp.framework.models.ffn import FFN
from milkshake_mbp.framework.models.model import Model
from milkshake_mbp.framework.registry import load_class

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


def load_model(name: str) -> type[Model]:
    """The model class that a configuration names; raises UserError as `load_class` does."""
    return load_class("model", name, MODELS, Model)
