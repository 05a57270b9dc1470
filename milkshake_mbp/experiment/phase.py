"""The phase transition of sketch recovery: how often a random sparse matrix comes back, and from how many numbers."""

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from rich.console import Console
from rich.progress import track
from torch import Tensor

from milkshake_mbp.errors import UserError
from milkshake_mbp.files import write_csv
from milkshake_mbp.reporting.figures import COLOURS, save_figure, scale_log
from milkshake_mbp.reporting.words import show_tick
from milkshake_mbp.theory.sketching import (
    DistributedSparsity,
    ensemble_degree,
    ensemble_pair,
    recover,
    sketch,
    sketch_dimension,
)

__all__ = ["Cell", "draw_phase", "measure_phase", "random_distributed_sparse"]


@dataclass(frozen=True)
class Cell:
    """One point of the phase diagram.

    Attributes:
        size: p of the p × p matrices.
        per_line: j, nonzeros in every row and column.
        ratio: m²/nnz asked for.
        sketch_dim: m.
        degree: of the ensembles.
        trials: matrices drawn.
        recovered: how many came back to a relative error of 1e-9.
        certified: how many of those with a proof; none of the others may have one.
        theorem_ratio: m²/nnz of Theorem 5.1 at constant 1.
    """

    size: int
    per_line: int
    ratio: float
    sketch_dim: int
    degree: int
    trials: int
    recovered: int
    certified: int
    theorem_ratio: float

    @property
    def key(self) -> tuple[int, int, float, int, int]:
        """What makes it the same experiment."""
        return self.size, self.per_line, self.ratio, self.degree, self.trials


def random_distributed_sparse(size: int, per_line: int, generator: np.random.Generator) -> Tensor:
    """A (p, p) float64 matrix with a full diagonal and at most j nonzeros, standard normal, in every row and column.

    The diagonal and j − 1 random permutations, which may meet.
    """
    matrix = torch.zeros(size, size, dtype=torch.float64)
    rows = np.arange(size)
    for columns in (rows, *(generator.permutation(size) for _ in range(per_line - 1))):
        matrix[rows, columns] = torch.from_numpy(generator.standard_normal(size))
    return matrix


def measure_phase(
    size: int,
    per_lines: Sequence[int],
    ratios: Sequence[float],
    *,
    trials: int,
    degree: int | None,
    seed: int,
    table: Path,
    console: Console,
) -> list[Cell]:
    """Measure every cell that the table does not hold yet, and add it to the table as soon as it is known.

    Args:
        size: p.
        per_lines: j, for each column of the diagram.
        ratios: m²/nnz, for each row.
        trials: matrices for each cell.
        degree: of the ensembles; None for ⌈ln p⌉.
        seed: of matrices and ensembles.
        table: the CSV file.
        console: where progress is shown.

    Returns:
        All cells asked for.

    Raises:
        UserError: the table is not a table of cells.
    """
    degree = degree or ensemble_degree(size)
    known = {cell.key: cell for cell in _read(table)}
    wanted = [(size, per_line, ratio, degree, trials) for per_line in per_lines for ratio in ratios]
    missing = [key for key in wanted if key not in known]
    if len(missing) < len(wanted):
        console.print(f"{table} has {len(wanted) - len(missing)} of {len(wanted)} cells: computing the others")
    for key in track(missing, "recovering", console=console, disable=not missing):
        known[key] = _measure(*key, seed=seed)
        write_csv(table, [asdict(cell) for cell in known.values()])
    return [known[key] for key in wanted]


def _measure(size: int, per_line: int, ratio: float, degree: int, trials: int, *, seed: int) -> Cell:
    # Every cell has its own draws, whatever was measured before it.
    generator = np.random.default_rng((seed, size, per_line, round(1000 * ratio), degree))
    nonzeros = size * per_line
    m = min(size, math.ceil(math.sqrt(ratio * nonzeros)))
    recovered = certified = 0
    for trial in range(trials):
        matrix = random_distributed_sparse(size, per_line, generator)
        left, right = ensemble_pair((size, size), m, degree, seed=seed, layer=trial)
        found = recover(sketch(matrix, left, right), left, right)
        exact = float(torch.linalg.vector_norm(found.matrix - matrix) / torch.linalg.vector_norm(matrix)) < 1e-9
        recovered += exact
        certified += found.certified
        if found.certified and not exact:
            raise AssertionError(f"a wrong matrix was certified: p={size}, j={per_line}, m={m}, trial {trial}")
    theorem = sketch_dimension((size, size), DistributedSparsity(per_line, per_line, True))
    return Cell(size, per_line, ratio, m, degree, trials, recovered, certified, theorem**2 / nonzeros)


def _read(table: Path) -> Iterator[Cell]:
    if not table.exists():
        return
    kinds = {field.name: field.type for field in fields(Cell)}
    try:
        with table.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                yield Cell(**{name: float(row[name]) if kinds[name] is float else int(row[name]) for name in kinds})  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{table} is not a table of recoveries: move it, or give another folder with --out_dir"
        ) from error


def draw_phase(cells: Sequence[Cell], folder: Path) -> list[Path]:
    """Share recovered and certified against m²/nnz, a curve for each j, with the theorem's m and the counting limit.

    Returns:
        phase.pdf and phase.png.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    for index, per_line in enumerate(sorted({cell.per_line for cell in cells})):
        curve = sorted((cell for cell in cells if cell.per_line == per_line), key=lambda cell: cell.ratio)
        colour = COLOURS[index % len(COLOURS)]
        ratios = [cell.sketch_dim**2 / (cell.size * cell.per_line) for cell in curve]
        label = f"j = {per_line}, p/j = {curve[0].size / per_line:.3g}"
        axis.plot(ratios, [cell.recovered / cell.trials for cell in curve], color=colour, marker="o", label=label)
        axis.plot(ratios, [cell.certified / cell.trials for cell in curve], color=colour, marker="x", linestyle=":")
        axis.axvline(curve[0].theorem_ratio, color=colour, linewidth=0.8, linestyle="--")
    axis.axvline(1, color="black", linewidth=0.8)
    axis.annotate("as many numbers as nonzeros", (1, 0.5), rotation=90, ha="right", va="center", fontsize=8)
    axis.set(
        title=f"{cells[0].size} × {cells[0].size}, degree {cells[0].degree}, {cells[0].trials} matrices a point",
        xlabel="m²/nonzeros; dashed: Theorem 5.1 at constant 1",
        ylabel="share recovered; dotted: with a proof",
    )
    scale_log(axis, "x")
    axis.yaxis.set_major_formatter(FuncFormatter(show_tick))
    axis.grid(alpha=0.25)
    figure.legend(fontsize=8, loc="outside lower center", ncols=3, frameon=False)
    return save_figure(figure, folder / "phase")
