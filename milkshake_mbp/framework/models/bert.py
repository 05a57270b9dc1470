"""Hugging Face's BERT (Devlin et al. 2019) for sequences of tokens."""

from argparse import Namespace
from operator import attrgetter
from typing import Any

from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.models.hub import HubNetwork, published, transformers_for
from milkshake_mbp.framework.models.model import Model

__all__ = ["BERT"]

_NAMES = {
    "tiny": "google/bert_uncased_L-2_H-128_A-2",
    "mini": "google/bert_uncased_L-4_H-256_A-4",
    "small": "google/bert_uncased_L-4_H-512_A-8",
    "medium": "google/bert_uncased_L-8_H-512_A-8",
    "base": "bert-base-uncased",
    "large": "bert-large-uncased",
}
_HEAD = 64  # numbers in each attention head, in every published size
_FEED_FORWARD = 4  # its hidden width, relative to that of the tokens


class BERT(Model):
    """BERT without case, with a layer that makes scores of its first token.

    Inputs are (n, tokens, 3): token number, attention mask, token type. Biases and the gains of layer normalization
    have no weight decay. `lr_scheduler` linear rises over `lr_warmup_epochs` and falls to zero over the other epochs.

    Args:
        args: the configuration: the keys that start with bert_, train_fc_only and num_classes, beside those of `Model`.

    Raises:
        UserError: transformers is not installed, or the weights cannot be downloaded.
    """

    def __init__(self, args: Namespace) -> None:
        super().__init__(args)
        library = transformers_for("model: bert")
        kind = library.BertForSequenceClassification
        if args.bert_pretrained:
            name = _NAMES[args.bert_version]
            network = published("bert_pretrained", "false", kind, name, num_labels=args.num_classes)
        else:
            configuration = library.BertConfig(
                hidden_size=args.bert_width,
                num_hidden_layers=args.bert_depth,
                num_attention_heads=args.bert_width // _HEAD,
                intermediate_size=_FEED_FORWARD * args.bert_width,
                num_labels=args.num_classes,
            )
            network = kind(configuration)
        self.model = HubNetwork(network, attrgetter("logits"), _tokens)
        self.train_only(self.model.head)

    def load_msg(self) -> str:
        """One line that describes the model."""
        keys = self.hparams
        size = keys["bert_version"] if keys["bert_pretrained"] else f"width {keys['bert_width']}"
        return f"{super().load_msg()}: {size}"

    def configure_optimizers(self) -> Any:
        """The optimizer and the learning-rate schedule, stepped once an epoch."""
        keys = self.hparams
        if keys["lr_scheduler"] not in ("linear", "step"):
            raise UserError(f"lr_scheduler: expected linear or step with model bert, got {keys['lr_scheduler']}")
        named = [(name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        plain = [parameter for name, parameter in named if name.endswith("bias") or "LayerNorm" in name]
        others = [parameter for name, parameter in named if not (name.endswith("bias") or "LayerNorm" in name)]
        groups = [{"params": others, "weight_decay": keys["weight_decay"]}, {"params": plain, "weight_decay": 0.0}]
        momentum = {"momentum": keys["momentum"]} if self.optimizer is SGD else {}
        optimizer = self.optimizer(groups, lr=keys["lr"], **momentum)
        if keys["lr_scheduler"] == "step":
            return [optimizer], [self._schedule(optimizer)]
        warmup, epochs = keys["lr_warmup_epochs"], self._length()

        def factor(epoch: int) -> float:
            if epoch < warmup:
                return epoch / warmup
            return max(0.0, (epochs - epoch) / max(1, epochs - warmup))

        return [optimizer], [LambdaLR(optimizer, factor)]


def _tokens(inputs: Tensor) -> dict[str, Tensor]:
    numbers = inputs.long()
    return {
        "input_ids": numbers[:, :, 0],
        "attention_mask": numbers[:, :, 1],
        "token_type_ids": numbers[:, :, 2],
    }
