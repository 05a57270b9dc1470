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
    """Pruning and bounds: how the network is pruned, and when its bounds are evaluated.

    Attributes:
        prune_d: Pruning strength d after training (a larger d prunes more), or auto for the d of the paper's search.
        prune_include: Layers to prune, as patterns of their names such as "model.layer1.*"; empty for all layers.
        prune_exclude: Layers not to prune, as patterns of their names.
        prune_layer_d: Layers with their own strength, each as PATTERN=STRENGTH; the last matching pattern counts.
        prune_seed: Seed of the masks.
        keep_diagonal: Whether Algorithm 1 never prunes diagonal entries.
        bounds_every_n_epochs: Epochs between two measurements of margin, errors and bounds.
        failure: Failure probability for which Theorem 5.2 is evaluated.
        delta: Joint failure probability of the bounds without hidden constants.
        experiment: Name that groups runs on a dashboard.
        rerun: Whether to repeat a finished run from the start.
        magnitude_flatness: Whether to also measure the tolerated noise that is proportional to the weights' magnitudes.
        figures: Whether to draw figures and write report.html; without them a grid of small networks trains faster.
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
                "prune_d: auto is one strength for all layers, but prune_include, prune_exclude or prune_layer_d "
                "treats some of them differently: give a number"
            )
        if self.prune_seed < 0:
            raise UserError(f"prune_seed must be at least 0, got {self.prune_seed}")
        if self.bounds_every_n_epochs < 1:
            raise UserError(f"bounds_every_n_epochs must be at least 1, got {self.bounds_every_n_epochs}")
        for name in ("failure", "delta"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"{name} must lie strictly between 0 and 1, got {getattr(self, name)}")


def prune_rule(keys: Any) -> PruneRule:
    """The layers that are pruned, and their strengths, from the configuration.

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
    """Sweep: how trials are run if a key is given a list of values.

    Attributes:
        engine: Engine that runs the trials, this machine (local) or Ray.
        parallel: Number of trials that run at once on this machine and share its cores; 1 for one after another.
        ray_address: Address of a Ray cluster, or auto for the running one; empty to start one on this machine.
        trial_cpus: Number of CPUs that Ray reserves for a trial.
        trial_gpus: Number of GPUs that Ray reserves for a trial; with a fraction, several trials share a GPU.
        max_retries: Number of times that a trial is restarted after its process died.
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
                "trial_cpus and trial_gpus determine how many trials run at once"
            )
        if self.engine == "local" and self.ray_address:
            raise UserError(f"ray_address: {self.ray_address} needs --engine ray")


@dataclass(frozen=True)
class Ladder:
    """Ladder: the bounds of a network that is already trained.

    Attributes:
        layers: Names of the Linear layers from input to output; needed if the file does not determine their order.
        initial_weights: File of the weights before training; by default initial.safetensors beside weights.
        input_mean: Mean subtracted from pixels in [0, 1], as in torchvision's Normalize; one number or one per channel.
        input_std: Standard deviation by which they are then divided; mean 0 and std 1 leave pixels in [0, 1].
        diagnostics: Whether to also draw pruning error, spread and sparsity against d, and the weights' normality.
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
    """Terminal: how much of the results is printed; the files always contain everything.

    Attributes:
        all: Whether to print every row of the ladder, and the measures that are not bounds, instead of a selection.
    """

    all: bool = immaterial(False)
