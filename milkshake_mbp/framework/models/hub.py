"""Hugging Face's networks, for those who have `transformers` installed, as modules from inputs to logits."""

from argparse import Namespace
from collections.abc import Callable
from importlib import import_module
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

from milkshake_mbp.errors import UserError

__all__ = ["HubNetwork", "image_network", "published", "transformers_for"]

# The classes' names in transformers: with a head, without one, and their configuration.
_IMAGE_NETWORKS = {
    "vit": ("ViTForImageClassification", "ViTModel", "ViTConfig"),
    "swin": ("SwinForImageClassification", "SwinModel", "SwinConfig"),
}
# Liu et al. (2021), Swin-L: what its configuration says that is not the default.
_SWIN_LARGE = {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48]}


class HubNetwork(nn.Module):
    """A network of Hugging Face's whose output is one tensor.

    Args:
        network: the network.
        read: takes the tensor out of what it returns.
        feed: makes its keyword arguments of a batch of inputs; by default the pixels of images.

    Attributes:
        head: its last layer.
    """

    def __init__(
        self,
        network: Any,
        read: Callable[[Any], Tensor],
        feed: Callable[[Tensor], dict[str, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self._read, self._feed = read, feed or _pixels

    @property
    def head(self) -> nn.Module:
        """The layer that makes the scores; nothing to train in a network without."""
        return getattr(self.network, "classifier", nn.Identity())

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, …) inputs to logits, or to features."""
        return self._read(self.network(**self._feed(inputs)))


def transformers_for(key: str) -> Any:
    """The module `transformers`.

    Args:
        key: the configuration's key and value that need it, for the message.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module("transformers")
    except ImportError as error:
        raise UserError(
            f"{key} needs the package transformers, which is not installed: pip install 'milkshake_mbp[transformers]'"
        ) from error


def published(key: str, off: str, kind: Any, name: str, **keys: Any) -> Any:
    """A network with the weights that are published under a name.

    Args:
        key: the configuration's key that asks for them, for the message.
        off: the value of it that does without.
        kind: the class in transformers.
        name: on the hub.
        keys: for its configuration.

    Raises:
        UserError: they cannot be had.
    """
    try:
        return kind.from_pretrained(name, ignore_mismatched_sizes=True, **keys)
    except (OSError, ValueError) as error:
        why = str(error).strip().partition("\n")[0]
        raise UserError(f"{key}: the weights {name} cannot be downloaded ({why}): give --{key} {off}") from error


def image_network(args: Namespace, model: str, name: str | None, gives_scores: bool) -> HubNetwork:
    """A transformer for images, with published weights or with random ones where `name` is None.

    Args:
        args: the configuration.
        model: vit or swin.
        name: of the weights on the hub.
        gives_scores: whether it ends in a layer for `num_classes`, rather than in features.
    """
    library = transformers_for(f"model: this {model}")
    with_head, without, configuration = _IMAGE_NETWORKS[model]
    kind = getattr(library, with_head if gives_scores else without)
    labels = {"num_labels": args.num_classes} if gives_scores else {}
    if name is None:
        size = {"image_size": args.image_size, **(_SWIN_LARGE if model == "swin" else {})}
        network = kind(getattr(library, configuration)(**size, **labels))
    else:
        network = published(f"{model}_pretrained", "none", kind, name, **labels)
    return HubNetwork(network, attrgetter("logits" if gives_scores else "last_hidden_state"))


def _pixels(images: Tensor) -> dict[str, Tensor]:
    return {"pixel_values": images}
