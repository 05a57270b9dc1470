"""The keys that this project adds to the framework's."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.settings import immaterial, newer, require
from milkshake_mbp.reading.rule import PruneRule

__all__ = ["Ladder", "Pruning", "Shown", "Sweep", "prune_rule"]


@dataclass(frozen=True)
class Pruning:
    """Pruning and bounds: what is done to the network and said about it.

    Attributes:
        prune_d: Strength at which the network is pruned after training, or auto for the paper's search.
        prune_include: Layers that are pruned, by patterns of their names such as "model.layer1.*"; all if empty.
        prune_exclude: Layers that are left alone, by such patterns.
        prune_layer_d: Layers with a strength of their own, each as PATTERN=STRENGTH; the last that fits counts.
        prune_seed: Seed of the masks.
        keep_diagonal: Whether Algorithm 1 spares the diagonal entries.
        bounds_every_n_epochs: Epochs between two measurements of margin, errors and bounds.
        failure: Failure probability asked of Theorem 5.2.
        delta: Failure probability of the bounds without hidden constants, all together.
        experiment: Name that groups runs on a dashboard.
        rerun: Whether to train again, from the start, a run whose results are there.
        magnitude_flatness: Whether to measure what noise in proportion to their size the weights tolerate, too.
        figures: Whether a run draws figures and writes its page; a grid of small networks trains faster without.
    """

    prune_d: float | Literal["auto"] = 1.0
    prune_include: list[str] = newer([])
    prune_exclude: list[str] = newer([])
    prune_layer_d: list[str] = newer([])
    prune_seed: int = 0
    keep_diagonal: bool = True
    bounds_every_n_epochs: int = 1
    failure: float = 0.05
    delta: float = 0.05
    experiment: str = immaterial("mbp")
    rerun: bool = immaterial(False)
    magnitude_flatness: bool = newer(False)
    figures: bool = immaterial(True)

    def __post_init__(self) -> None:
        if self.prune_d != "auto" and not self.prune_d >= 0:
            raise UserError(f"prune_d must be auto or at least 0, got {self.prune_d}")
        if prune_rule(self) and self.prune_d == "auto":
            raise UserError(
                "prune_d: auto is one strength for all layers, and prune_include, prune_exclude or prune_layer_d sets "
                "some apart: give a number"
            )
        if self.prune_seed < 0:
            raise UserError(f"prune_seed must be at least 0, got {self.prune_seed}")
        if self.bounds_every_n_epochs < 1:
            raise UserError(f"bounds_every_n_epochs must be at least 1, got {self.bounds_every_n_epochs}")
        for name in ("failure", "delta"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"{name} must lie strictly between 0 and 1, got {getattr(self, name)}")


def prune_rule(keys: Any) -> PruneRule:
    """Which layers are pruned, and at which strengths, as the configuration says.

    Args:
        keys: with prune_include, prune_exclude and prune_layer_d.

    Raises:
        UserError: a strength cannot be read, or is below 0.
    """
    strengths = {}
    for given in keys.prune_layer_d:
        pattern, _, d = given.rpartition("=")
        try:
            strengths[pattern] = float(d)
        except ValueError:
            strengths[pattern] = math.nan
        if not pattern or not strengths[pattern] >= 0:
            raise UserError(
                f'prune_layer_d: expected PATTERN=STRENGTH with a strength ≥ 0, as model.fc=0.5, got "{given}"'
            )
    return PruneRule(keys.prune_include, keys.prune_exclude, strengths)


@dataclass(frozen=True)
class Sweep:
    """Sweep: how the trials are run when a key is given a list of values.

    Attributes:
        engine: What runs them, this machine or Ray.
        parallel: Trials that run at once on this machine, the cores shared out; 1 means one after another.
        ray_address: Ray cluster to join, auto for the one at hand; one of this machine's own is started if empty.
        trial_cpus: CPUs that Ray sets aside for a trial.
        trial_gpus: GPUs that Ray sets aside for a trial; a fraction shares one.
        max_retries: Times that a trial is started again because the process that ran it died.
    """

    engine: Literal["local", "ray"] = immaterial("local")
    parallel: int = immaterial(1)
    ray_address: str = immaterial("")
    trial_cpus: float = immaterial(1.0)
    trial_gpus: float = immaterial(0.0)
    max_retries: int = immaterial(2)

    def __post_init__(self) -> None:
        require(self, "at least 1", lambda x: x >= 1, "parallel")
        require(self, "at least 0", lambda x: x >= 0, "max_retries")
        require(self, "a finite number, at least 0", lambda x: 0 <= x < math.inf, "trial_cpus", "trial_gpus")
        if self.engine == "ray" and self.parallel > 1:
            raise UserError(
                f"parallel: expected 1 with engine ray, got {self.parallel}: "
                "as many trials run as trial_cpus and trial_gpus leave room for"
            )
        if self.engine == "local" and self.ray_address:
            raise UserError(f"ray_address: {self.ray_address} needs --engine ray")


@dataclass(frozen=True)
class Ladder:
    """Ladder: the bounds of a network that is already trained.

    Attributes:
        layers: Names of the network's Linear layers from input to output, where the file does not tell their order.
        initial_weights: File of the weights that training started from; initial.safetensors beside weights if empty.
        input_mean: Mean taken from pixels from 0 to 1, as by torchvision's Normalize; one, or one a channel.
        input_std: Number they were then divided by; mean 0 and std 1 for inputs from 0 to 1.
        diagnostics: Whether to draw pruning error, spread and sparsity over d, and the weights' normality, too.
    """

    layers: list[str] = field(default_factory=list)
    initial_weights: str = ""
    input_mean: list[float] = field(default_factory=list)
    input_std: list[float] = field(default_factory=list)
    diagnostics: bool = True

    def __post_init__(self) -> None:
        require(self, "finite numbers", lambda x: all(map(math.isfinite, x)), "input_mean")
        require(self, "finite numbers above 0", lambda x: all(0 < std < math.inf for std in x), "input_std")


@dataclass(frozen=True)
class Shown:
    """Terminal: what is shown of the results, all of which are in the files.

    Attributes:
        all: Whether to show every row of the ladder rather than those that matter, and the measures that are no bounds.
    """

    all: bool = immaterial(False)
