"""The keys of a certificate."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from milkshake_mbp.codec import Pool, Window
from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.settings import require

__all__ = ["Certifying", "read_node"]

_POOLS: dict[str, Literal["sum", "max"]] = {"sum": "sum", "max": "max"}


@dataclass(frozen=True)
class Certifying:
    """Certificate: the network that is coded, how it is trained, and how long the search for a better one lasts.

    Attributes:
        bank: Fixed filters before the first layer, part of the code's definition.
        cell: Side of the bank's cells, in pixels.
        nodes: Convolutions, "conv OUT KERNEL [STRIDE [PADDING [GROUPS]]]", and pooling, "sum SIDE [STRIDE]" or "max".
        hidden: Widths of the hidden layers after them; dead neurons are dropped.
        levels: The largest integer weight of each layer, one number for all or one a layer.
        free_scales: Whether rows are scaled by a fixed function of their weights and not by a learned factor.
        bias_step: Step of the biases, in units of a typical input.
        crop: Pixels left out on each side of an image.
        pool: Side of the squares of pixels that are summed into one input.
        stride: Pixels between two squares; 0 for squares side by side.
        grey: Whether the channels are summed.
        price: What a weight costs while training, as a multiple of what its bits are worth in error.
        price_rise: Share of the training over which the price rises from nothing, after the first tenth.
        price_end: What is left of the price in the last third of the training, as a share.
        damping: How far a step draws a weight to its rounded value at the end of the training, as a share.
        cross_entropy: Share of the cross entropy in the loss, the rest being the probability of error.
        cross_entropy_first: That share in the first quarter of the training.
        adam_decay: Decay of Adam's second moments.
        teacher: Trained network to learn from, a file or package.module:Class; its use is free.
        distillation: Share of the teacher's probabilities in the targets, the rest being the labels.
        seeds: How many seeds are tried, from seed on, in processes side by side; the best certificate counts.
        code_every_n_epochs: Epochs between two codings.
        search_rounds: Rounds of the search on the bound; 0 for none.
        search_steps: Changes tried in a round.
        search_heat: Heat of the annealing at the start, in units of the bound.
        delta: Failure probability of the guarantee.
        experiment: Name that groups runs on a dashboard.
        rerun: Whether to train again, from the start, a run whose results are there.
    """

    bank: Literal["none", "grey", "colour"] = "none"
    cell: int = 4
    nodes: list[str] = field(default_factory=list)
    hidden: list[int] = field(default_factory=lambda: [48])
    levels: list[int] = field(default_factory=lambda: [2])
    free_scales: bool = False
    bias_step: float = 0.25
    crop: int = 0
    pool: int = 1
    stride: int = 0
    grey: bool = False
    price: float = 10.0
    price_rise: float = 0.4
    price_end: float = 1.0
    damping: float = 0.0
    cross_entropy: float = 0.3
    cross_entropy_first: float = 0.3
    adam_decay: float = 0.999
    teacher: str = ""
    distillation: float = 0.5
    seeds: int = 1
    code_every_n_epochs: int = 5
    search_rounds: int = 0
    search_steps: int = 2000
    search_heat: float = 0.0
    delta: float = 0.05
    experiment: str = "certificate"
    rerun: bool = False

    def __post_init__(self) -> None:
        nodes = [read_node(node) for node in self.nodes]
        if (teacher := Path(self.teacher).expanduser()).is_file():
            # So that the configuration means the same in any working directory.
            object.__setattr__(self, "teacher", str(teacher.absolute()))
        layers = len(self.hidden) + 1 + sum(not isinstance(node, Pool) for node in nodes)
        if any(width < 1 for width in self.hidden):
            raise UserError(f"hidden must be widths of at least 1, got {self.hidden}")
        if len(self.levels) not in (1, layers) or any(level < 1 for level in self.levels):
            raise UserError(f"levels must be one number ≥ 1, or one for each of {layers} layers, got {self.levels}")
        if len(self.levels) == 1:
            object.__setattr__(self, "levels", self.levels * layers)
        if self.bank != "none" and (self.pool != 1 or self.stride > 1 or self.grey):
            raise UserError(f"bank: {self.bank} reads pixels as they are, so pool and stride are 1 and grey is false")
        require(self, "at least 1", lambda x: x >= 1, "cell", "pool", "seeds", "code_every_n_epochs", "search_steps")
        require(self, "at least 0", lambda x: x >= 0, "crop", "stride", "price", "search_rounds", "search_heat")
        require(self, "more than 0", lambda x: x > 0, "bias_step")
        shares = ("cross_entropy", "cross_entropy_first", "price_rise", "price_end", "damping", "distillation")
        require(self, "between 0 and 1", lambda x: 0 <= x <= 1, *shares)
        require(self, "strictly between 0 and 1", lambda x: 0 < x < 1, "delta", "adam_decay")


def read_node(text: str) -> Pool | tuple[int, Window | None]:
    """Pooling, or a convolution as its outputs and window, as the key `nodes` names them.

    Raises:
        UserError: it names none.
    """
    kind, *words = text.split() or [""]
    try:
        numbers = [int(word) for word in words]
        if kind == "conv":
            outputs, *window = numbers
            if outputs > 0:
                return outputs, Window(*window)
        elif kind in _POOLS and len(numbers) <= 2:
            return Pool(_POOLS[kind], numbers[0], numbers[-1])
    except (IndexError, TypeError, ValueError):
        pass
    raise UserError(
        f'nodes: expected "conv OUT KERNEL [STRIDE [PADDING [GROUPS]]]", "sum SIDE [STRIDE]" or "max SIDE [STRIDE]", '
        f"got {text!r}"
    )
