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
    """Certificate: architecture and training of the coded network, and the search that reduces its bound.

    Attributes:
        bank: Bank of fixed filters before the first layer; part of the code's definition, so it costs no bits.
        cell: Side of the bank's pooling cells, in pixels.
        nodes: Convolutions, as "conv OUT KERNEL [STRIDE [PADDING [GROUPS]]]", and pooling, as "sum SIDE [STRIDE]" or
            "max SIDE [STRIDE]".
        hidden: Widths of the hidden linear layers after the nodes; dead neurons are dropped.
        levels: Largest integer weight; one number for all layers, or one per layer.
        free_scales: Whether each row is scaled by a fixed function of its weights instead of a learned factor.
        bias_step: Quantization step of the biases, in units of a typical input.
        crop: Number of pixels removed on each side of an image.
        pool: Side of the squares of pixels that are summed into one input.
        stride: Distance between two squares, in pixels; 0 for adjacent squares.
        grey: Whether the channels are summed.
        price: Penalty on a weight in training, as a multiple of the increase of the bound that its bits cause.
        price_rise: Share of the training over which the price rises from 0, after the first tenth.
        price_end: Share of the price that remains in the last third of the training.
        damping: Share of the way to its rounded value that a weight moves in each step at the end of the training.
        cross_entropy: Share of cross entropy in the loss; the rest is the probability of error.
        cross_entropy_first: Share of cross entropy in the first quarter of the training.
        adam_decay: Decay rate of Adam's second moments.
        teacher: Trained network to learn from, as a file or package.module:Class; it costs no bits.
        distillation: Share of the teacher's probabilities in the training targets; the rest is the labels.
        seeds: Number of seeds to try, counted from seed, in parallel processes; the best certificate is kept.
        code_every_n_epochs: Epochs between two codings of the network.
        search_rounds: Number of rounds of the search; 0 for no search.
        search_steps: Number of changes tried in a round.
        search_heat: Initial temperature of simulated annealing, in units of the bound; 0 for no annealing.
        delta: Failure probability of the guarantee.
        experiment: Name that groups runs on a dashboard.
        rerun: Whether to repeat a finished run from the start.
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
            raise UserError(f"bank: {self.bank} reads unchanged pixels: give pool 1, stride 0 or 1, and grey false")
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
