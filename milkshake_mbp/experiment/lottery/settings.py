"""The keys of the lottery."""

from dataclasses import dataclass, field
from typing import Literal

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.settings import require

__all__ = ["CONTROLS", "Lottery", "Strong"]

CONTROLS = ("random_mask", "reinit")


@dataclass(frozen=True)
class Lottery:
    """Lottery: rounds of pruning and rewinding, and their controls.

    Attributes:
        rounds: Number of pruning rounds after the dense network; 0 for none.
        prune_rate: Share of the surviving weights that a round prunes.
        output_rate: Share that a round prunes in the output layer; by default prune_rate.
        prune_scope: Whether all layers share one threshold (global) or each has its own (layer).
        pruner: Whether a round prunes the smallest weights (magnitude) or at random by algorithm_1 of the paper.
        keep_diagonal: Whether Algorithm 1 never prunes diagonal entries.
        rewind_steps: Training step to whose weights the survivors are rewound; 0 for the initial weights.
        seeds: Seeds of the repetitions; empty for seed alone.
        controls: Controls of a ticket: random_mask keeps as many weights per layer, reinit draws new initial weights.
        control_rounds: Rounds with controls; empty for all.
        sketch_rounds: Whether to sketch every layer of every ticket.
        failure: Failure probability for which Theorem 5.2 is evaluated.
        delta: Joint failure probability of the bounds without hidden constants.
        experiment: Name that groups runs on a dashboard.
        rerun: Whether to repeat finished trainings from the start.
    """

    rounds: int = 10
    prune_rate: float = 0.2
    output_rate: float | None = None
    prune_scope: Literal["global", "layer"] = "global"
    pruner: Literal["magnitude", "algorithm_1"] = "magnitude"
    keep_diagonal: bool = False
    rewind_steps: int = 0
    seeds: list[int] = field(default_factory=list)
    controls: list[str] = field(default_factory=lambda: list(CONTROLS))
    control_rounds: list[int] = field(default_factory=list)
    sketch_rounds: bool = True
    failure: float = 0.05
    delta: float = 0.05
    experiment: str = "lottery"
    rerun: bool = False

    def __post_init__(self) -> None:
        require(self, "at least 0", lambda x: x >= 0, "rounds", "rewind_steps")
        require(
            self,
            "a probability strictly between 0 and 1",
            lambda x: 0 < x < 1,
            "prune_rate",
            "output_rate",
            "failure",
            "delta",
        )
        require(self, "some of random_mask and reinit", lambda x: set(x) <= set(CONTROLS), "controls")
        require(
            self, "seeds of at least 0, none twice", lambda x: len(set(x)) == len(x) and min(x, default=0) >= 0, "seeds"
        )
        if any(not 1 <= turn <= self.rounds for turn in self.control_rounds):
            raise UserError(f"control_rounds: expected rounds from 1 to {self.rounds}, got {self.control_rounds}")


@dataclass(frozen=True)
class Strong:
    """Strong ticket: a trained target network approximated by pruning a random network, without training it.

    Attributes:
        strong: Whether to search for a strong ticket.
        target_width: Width of the target's hidden layers.
        target_layers: Number of weight matrices of the target.
        epsilon: Largest allowed distance of the outputs, as a share of the target's largest output.
        random_seeds: Number of random networks that are pruned.
        nearest_candidates: Numbers of candidates per input to try, if one candidate is kept for each weight.
        subset_candidates: Numbers of candidates per input to try, if a subset is kept for each weight.
    """

    strong: bool = False
    target_width: int = 16
    target_layers: int = 3
    epsilon: float = 0.01
    random_seeds: int = 3
    nearest_candidates: list[int] = field(
        default_factory=lambda: [64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768]
    )
    subset_candidates: list[int] = field(default_factory=lambda: [4, 8, 12, 16, 20, 24, 28, 32, 36, 40])

    def __post_init__(self) -> None:
        require(self, "at least 1", lambda x: x >= 1, "target_width", "target_layers", "random_seeds")
        require(self, "a number above 0 and below 1", lambda x: 0 < x < 1, "epsilon")
        require(
            self,
            "one or more numbers of at least 1",
            lambda x: x and min(x) >= 1,
            "nearest_candidates",
            "subset_candidates",
        )
