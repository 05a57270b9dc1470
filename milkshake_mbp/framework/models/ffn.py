"""The feedforward network of the paper: equal hidden widths, one activation."""

from argparse import Namespace
from itertools import pairwise

from torch import Tensor, nn

from milkshake_mbp.framework.models.activations import ACTIVATIONS
from milkshake_mbp.framework.models.model import Model

__all__ = ["ACTIVATIONS", "FFN"]


class FFN(Model):
    """f(x) = A_L φ(A_{L−1} φ(… φ(A_1 x))), with biases only if `bias`.

    Args:
        args: the configuration: ffn_input_dim, ffn_hidden_dim, ffn_num_layers, ffn_activation, bias, dropout_prob,
            train_fc_only and num_classes, beside the keys of `Model`.
    """

    def __init__(self, args: Namespace) -> None:
        super().__init__(args)
        activation = ACTIVATIONS[args.ffn_activation]
        widths = [args.ffn_input_dim, *[args.ffn_hidden_dim] * (args.ffn_num_layers - 1), args.num_classes]
        modules: list[nn.Module] = []
        for inputs, outputs in pairwise(widths[:-1]):
            # Identity costs nothing and keeps upstream Milkshake's layer numbers, so its checkpoints load.
            dropout = nn.Dropout(args.dropout_prob) if args.dropout_prob else nn.Identity()
            modules += [nn.Linear(inputs, outputs, bias=args.bias), activation(), dropout]
        modules.append(nn.Linear(widths[-2], widths[-1], bias=args.bias))
        self.model = nn.Sequential(*modules)
        self.train_only(self.model[-1])

    def load_msg(self) -> str:
        """One line that describes the model."""
        keys = self.hparams
        return f"{super().load_msg()}: {keys['ffn_num_layers']} layers, hidden width {keys['ffn_hidden_dim']}"

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, …) inputs, flattened, to (n, k) logits, or (n,) where there is one."""
        return self.one_output(self.model(inputs.flatten(1)))
