"""Recovering a matrix from its sketch, beside general LP solvers, and how it scales.

    python benchmarks/sketch_recovery.py [--sizes 70 200 784 2500] [--seeds 20] [--peer_seeds 3]

First the same instances at p = 70, 210 nonzeros, m = 38, for `recover` (proof included), SciPy's HiGHS on the
split-variable linear program, and, where CVXPY is installed, Clarabel and SCS: seconds, ratio, and the error each
leaves. The peers get the operator A ⊗ B as one sparse matrix and prove nothing about uniqueness. Then our own times
alone for growing p, uniform support with 8.6 nonzeros per row on average: recovery and certificate apart (warm from
the solver's dual iterate, and cold), over the seeds, and the peak memory of a process that does this and nothing else.
One thread throughout.
"""

import argparse
import importlib
import importlib.util
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import scipy.sparse
import torch
from rich.console import Console
from rich.table import Table
from scipy.optimize import linprog
from torch import Tensor

from milkshake_mbp.theory.kronecker import to_csr
from milkshake_mbp.theory.sketching import certify, ensemble_pair, recover, sketch

SKETCH_DIMS = {70: 56, 200: 105, 784: 230, 2500: 490}
PER_ROW = 6750 / 784
RACE = {"p": 70, "m": 38, "count": 210}


def problem(p: int, m: int, degree: int, seed: int, count: int, per_row: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """X with `count` nonzeros in uniform places, or `per_row` nonzeros in each row and column, and its ensembles."""
    rng = np.random.default_rng(seed)
    matrix = np.zeros((p, p))
    if not per_row:
        matrix.ravel()[rng.choice(p * p, count, replace=False)] = rng.standard_normal(count)
    else:
        for _ in range(per_row):
            matrix[np.arange(p), rng.permutation(p)] = rng.standard_normal(p)
    return (torch.from_numpy(matrix), *ensemble_pair((p, p), m, degree, seed=seed))


def timed(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Seconds, and what came out."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def relative_error(found: Tensor, matrix: Tensor) -> float:
    """‖X̂ − X‖_F / ‖X‖_F."""
    return float(torch.linalg.vector_norm(found - matrix) / torch.linalg.vector_norm(matrix))


def highs(sketched: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """SciPy's HiGHS on min Σ(u + v), A ⊗ B (u − v) = y, u, v ≥ 0."""
    operator = scipy.sparse.kron(to_csr(left, left.shape[1]), to_csr(right, right.shape[1]), format="csr")
    both = scipy.sparse.hstack([operator, -operator])
    result = linprog(
        np.ones(both.shape[1]), A_eq=both, b_eq=sketched.numpy().ravel(), method="highs", options={"time_limit": 600.0}
    )
    if result.x is None:
        return torch.full((left.shape[1], right.shape[1]), torch.nan, dtype=torch.float64)
    first, second = np.split(result.x, 2)
    return torch.from_numpy((first - second).reshape(left.shape[1], right.shape[1]))


def cvxpy_solver(name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """CVXPY with one of its solvers, at its defaults."""

    def solve(sketched: Tensor, left: Tensor, right: Tensor) -> Tensor:
        cvxpy = importlib.import_module("cvxpy")
        operator = scipy.sparse.kron(to_csr(left, left.shape[1]), to_csr(right, right.shape[1]), format="csr")
        x = cvxpy.Variable(operator.shape[1])
        cvxpy.Problem(cvxpy.Minimize(cvxpy.norm1(x)), [operator @ x == sketched.numpy().ravel()]).solve(solver=name)
        return torch.from_numpy(x.value.reshape(left.shape[1], right.shape[1]))

    return solve


def race(console: Console, degree: int, seeds: int) -> None:
    """All solvers on the same instances at p = 70."""
    solvers: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "recover, with certificate": lambda y, a, b: recover(y, a, b).matrix,
        "SciPy HiGHS": highs,
    }
    if importlib.util.find_spec("cvxpy"):
        solvers |= {"CVXPY Clarabel": cvxpy_solver("CLARABEL"), "CVXPY SCS": cvxpy_solver("SCS")}
    else:
        console.print("CVXPY is not installed; its solvers are left out.")
    seconds: dict[str, list[float]] = {name: [] for name in solvers}
    errors: dict[str, list[float]] = {name: [] for name in solvers}
    certified = 0
    for seed in range(seeds):
        matrix, left, right = problem(**RACE, degree=degree, seed=seed)
        sketched = sketch(matrix, left, right)
        # It also warms up.
        certified += recover(sketched, left, right).certified
        for name, solver in solvers.items():
            tries = [
                timed(lambda solver=solver: solver(sketched, left, right))  # type: ignore[misc]  # noqa: B023
                for _ in range(9 if name.startswith("recover") else 1)
            ]
            seconds[name].append(statistics.median(spent for spent, _ in tries))
            found = tries[0][1]
            errors[name].append(relative_error(found, matrix))
    table = Table(title=f"{RACE}, degree {degree}, {certified}/{seeds} certified")
    for column in ("solver", "seconds (median)", "× recover", "largest error"):
        table.add_column(column, justify="left" if column == "solver" else "right")
    ours = statistics.median(seconds["recover, with certificate"])
    for name in solvers:
        spent = statistics.median(seconds[name])
        table.add_row(name, f"{spent:.4f}", f"{spent / ours:.1f}", f"{max(errors[name]):.1e}")
    console.print(table)


def scale(p: int, m: int, degree: int, seeds: int, per_row: int) -> list[str]:
    """One row of the second table; run in a process of its own, for the memory."""
    recovery, proof, errors, sound = [], [], [], 0
    before = 0.0
    for seed in range(-1, seeds):
        matrix, left, right = problem(p, m, degree, max(seed, 0), round(PER_ROW * p), per_row)
        sketched = sketch(matrix, left, right)
        if seed < 0:
            before = _peak()
            if p <= 784:
                recover(sketched, left, right)
            continue
        whole, found = timed(lambda: recover(sketched, left, right))  # type: ignore[arg-type, return-value]  # noqa: B023
        alone, bare = timed(lambda: recover(sketched, left, right, certificate=False))  # type: ignore[arg-type, return-value]  # noqa: B023
        cold, _ = timed(lambda: certify(bare.matrix, left, right))  # type: ignore[arg-type, return-value, attr-defined]  # noqa: B023
        recovery.append(alone)
        proof.append((whole - alone, cold))
        errors.append(relative_error(found.matrix, matrix))  # type: ignore[attr-defined]
        sound += found.certified  # type: ignore[attr-defined]
    return [
        str(p),
        str(m),
        str(degree),
        f"j = {per_row}" if per_row else "uniform",
        f"{sound}/{seeds}",
        f"{statistics.median(recovery):.3f} ({max(recovery):.3f})",
        f"{statistics.median(w for w, _ in proof):.3f}",
        f"{statistics.median(c for _, c in proof):.3f} ({max(c for _, c in proof):.3f})",
        f"{max(errors):.0e}",
        f"{_peak() - before:.0f} + {before:.0f}",
    ]


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 2**20)


def benchmark() -> None:
    """Race the peers, then time ourselves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[70, 200, 784, 2500])
    parser.add_argument("--degrees", type=int, nargs="*", default=[5, 7])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--peer_seeds", type=int, default=3)
    parser.add_argument("--row", type=int, nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--race", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=120)
    if options.race:
        race(console, 5, options.peer_seeds)
        return
    if options.row:
        print("\t".join(scale(*options.row)))
        return
    single = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    if options.peer_seeds:
        command = [sys.executable, __file__, "--race", "--peer_seeds", str(options.peer_seeds)]
        subprocess.run(command, check=True, env=single)
    table = Table(title="recover alone: seconds, median (worst); memory of the work + of the libraries, MiB")
    for column in (
        "p",
        "m",
        "degree",
        "support",
        "certified",
        "recovery",
        "proof, warm",
        "proof, cold",
        "error",
        "MiB",
    ):
        table.add_column(column, justify="right")
    rows = [(p, SKETCH_DIMS[p], degree, 0) for p in options.sizes for degree in options.degrees]
    rows += [(784, 215, degree, 9) for degree in options.degrees if 784 in options.sizes]
    for p, m, degree, per_row in rows:
        seeds = options.seeds if p <= 784 else min(options.seeds, 2)
        command = [sys.executable, __file__, "--row", *map(str, (p, m, degree, seeds, per_row))]
        output = subprocess.run(command, check=True, capture_output=True, text=True, env=single).stdout
        table.add_row(*output.strip().split("\t"))
    console.print(table)


if __name__ == "__main__":
    benchmark()
