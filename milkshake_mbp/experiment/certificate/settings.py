"""The keys of a certificate."""

from dataclasses import dataclass, field

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.settings import require

__all__ = ["Certifying"]


@dataclass(frozen=True)
class Certifying:
    """Certificate: the network that is coded, how it is trained, and how long the search for a better one lasts.

    Attributes:
        hidden: Widths of the hidden layers; dead neurons are dropped.
        levels: The largest integer weight of each layer, one number for all or one a layer.
        crop: Pixels left out on each side of an image.
        pool: Side of the squares of pixels that are summed into one input.
        stride: Pixels between two squares; 0 for squares side by side.
        grey: Whether the channels are summed.
        price: What a weight costs while training, as a multiple of what its bits are worth in error.
        cross_entropy: Share of the cross entropy in the loss, the rest being the probability of error.
        code_every_n_epochs: Epochs between two codings.
        search_rounds: Rounds of the search on the bound; 0 for none.
        search_steps: Changes tried in a round.
        search_heat: Heat of the annealing at the start, in units of the bound.
        delta: Failure probability of the guarantee.
        experiment: Name that groups runs on a dashboard.
        rerun: Whether to train again, from the start, a run whose results are there.
    """

    hidden: list[int] = field(default_factory=lambda: [48])
    levels: list[int] = field(default_factory=lambda: [2])
    crop: int = 0
    pool: int = 1
    stride: int = 0
    grey: bool = False
    price: float = 10.0
    cross_entropy: float = 0.3
    code_every_n_epochs: int = 5
    search_rounds: int = 0
    search_steps: int = 2000
    search_heat: float = 0.0
    delta: float = 0.05
    experiment: str = "certificate"
    rerun: bool = False

    def __post_init__(self) -> None:
        layers = len(self.hidden) + 1
        if any(width < 1 for width in self.hidden):
            raise UserError(f"hidden must be widths of at least 1, got {self.hidden}")
        if len(self.levels) not in (1, layers) or any(level < 1 for level in self.levels):
            raise UserError(f"levels must be one number ≥ 1, or one for each of {layers} layers, got {self.levels}")
        if len(self.levels) == 1:
            object.__setattr__(self, "levels", self.levels * layers)
        require(self, "at least 1", lambda x: x >= 1, "pool", "code_every_n_epochs", "search_steps")
        require(self, "at least 0", lambda x: x >= 0, "crop", "stride", "price", "search_rounds", "search_heat")
        require(self, "between 0 and 1", lambda x: 0 <= x <= 1, "cross_entropy")
        require(self, "strictly between 0 and 1", lambda x: 0 < x < 1, "delta")
