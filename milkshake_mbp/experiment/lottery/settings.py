"""The keys of the lottery."""

from dataclasses import dataclass, field
from typing import Literal

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.settings import require

__all__ = ["CONTROLS", "Lottery", "Strong"]

CONTROLS = ("random_mask", "reinit")


@dataclass(frozen=True)
class Lottery:
    """Lottery: rounds of pruning and rewinding, and what they are compared with.

    Attributes:
        rounds: Rounds of pruning after the dense network; 0 for none of them.
        prune_rate: Share of the surviving weights that a round prunes.
        output_rate: The same for the output layer; prune_rate if not given.
        prune_scope: Whether layers share one threshold or have one each.
        pruner: Whether the smallest weights go, or Algorithm 1 chooses among the small at random.
        keep_diagonal: Whether Algorithm 1 spares the diagonal entries.
        rewind_steps: Training step whose weights the survivors are set back to; 0 for the initial ones.
        seeds: Seeds of the repetitions; seed if empty.
        controls: random_mask, the same number of weights in every layer at random, and reinit, other initial weights.
        control_rounds: Rounds that have controls; every one if empty.
        sketch_rounds: Whether every layer of every ticket is sketched.
        failure: Failure probability asked of Theorem 5.2.
        delta: Failure probability of the bounds without hidden constants, all together.
        experiment: Name that groups runs on a dashboard.
        rerun: Whether to train again, from the start, what is finished.
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
    """Strong ticket: a trained target found inside a random network by pruning alone.

    Attributes:
        strong: Whether to look for it.
        target_width: Width of the target's hidden layers.
        target_layers: Number of the target's weight matrices.
        epsilon: Largest distance of the outputs asked for, as a share of the target's largest output.
        random_seeds: Random networks that are pruned.
        nearest_candidates: Candidates for each input when one is kept for each weight.
        subset_candidates: Candidates for each input when subsets of them are.
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
