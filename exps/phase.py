"""Measure the phase transition of sketch recovery, as a figure and CSV; a rerun computes missing cells only.

python exps/phase.py [--size 200] [--per_lines [2,6,18]] [--trials 20] [--out_dir out]
"""

import os

# Threads that spin while they wait stall one another where cores are few or shared. Read once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from dataclasses import dataclass, field
from pathlib import Path

from milkshake_mbp.framework.args import read_settings
from milkshake_mbp.framework.cli import run_cli
from milkshake_mbp.framework.console import make_console
from milkshake_mbp.framework.settings import require


@dataclass(frozen=True)
class Phase:
    """Phase transition: which matrices are sketched, and how often.

    Attributes:
        size: Side p of the p × p matrices.
        per_lines: Nonzeros j in every row and column, a curve for each.
        ratios: Numbers in the sketch for every nonzero, m²/nnz, a point for each.
        trials: Matrices for each point.
        degree: Degree of the ensembles; the logarithm of p, rounded up, if not given.
        seed: Seed of matrices and ensembles.
        out_dir: Folder that results are written under.
        debug: Whether an error shows its traceback rather than one line.
    """

    size: int = 200
    per_lines: list[int] = field(default_factory=lambda: [2, 6, 18])
    ratios: list[float] = field(default_factory=lambda: [2.0, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 6.5, 7.0, 8.0, 10.0])
    trials: int = 20
    degree: int | None = None
    seed: int = 0
    out_dir: str = "out"
    debug: bool = False

    def __post_init__(self) -> None:
        require(self, "at least 1", lambda x: x >= 1, "size", "trials", "degree")
        require(self, "at least 0", lambda x: x >= 0, "seed")
        require(self, "numbers from 1 to size", lambda x: x and all(1 <= j <= self.size for j in x), "per_lines")
        require(self, "numbers above 0", lambda x: x and all(ratio > 0 for ratio in x), "ratios")


def main() -> None:
    """Measure what is missing and draw."""
    keys = read_settings(None, Phase)
    # What follows loads Lightning, which takes seconds; help and refusals come without.
    from milkshake_mbp.experiment.phase import draw_phase, measure_phase

    console = make_console()
    # The table's cells are of one seed.
    folder = Path(keys.out_dir) / (f"phase-{keys.size}-seed{keys.seed}" if keys.seed else f"phase-{keys.size}")
    table = folder / "phase.csv"
    cells = measure_phase(
        keys.size,
        keys.per_lines,
        keys.ratios,
        trials=keys.trials,
        degree=keys.degree,
        seed=keys.seed,
        table=table,
        console=console,
    )
    draw_phase(cells, folder)
    console.print(f"Table and figure: {folder}")


if __name__ == "__main__":
    run_cli(main)
