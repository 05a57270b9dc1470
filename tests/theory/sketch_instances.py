"""Small sketching problems of every awkward kind, and an oracle for uniqueness that shares no code with ours."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog

Array = NDArray[np.float64]

KINDS = (
    "random",
    "below",
    "duplicate columns",
    "heavy row",
    "heavy column",
    "empty columns",
    "empty rows",
    "repeated rows",
    "tied",
    "integer",
    "orders",
    "zero",
    "one side",
    "dense",
    "rank one",
)


def ensemble(rng: np.random.Generator, m: int, p: int) -> Array:
    matrix = np.zeros((m, p))
    for column in range(p):
        matrix[rng.integers(m, size=rng.integers(1, 4)), column] = 1
    return matrix


def instance(kind: str, seed: int, largest: int = 8) -> tuple[Array, Array, Array]:
    """X, A, B of one kind; a fixed function of the arguments."""
    rng = np.random.default_rng((KINDS.index(kind), seed))
    rows, columns = rng.integers(3, largest + 1, size=2)
    m, k = rng.integers((rows + 1) // 2, rows + 2), rng.integers((columns + 1) // 2, columns + 2)
    nonzeros = int(rng.integers(1, max(2, m * k // 4)))
    if kind == "below":
        nonzeros = int(min(rows * columns, m * k // 2 + 1))
    x = np.zeros(rows * columns)
    x[rng.choice(x.size, min(nonzeros, x.size), replace=False)] = 1
    x = x.reshape(rows, columns)
    values = rng.normal(size=x.shape)
    if kind == "heavy row":
        x[rng.integers(rows)] = 1
    elif kind == "heavy column":
        x[:, rng.integers(columns)] = 1
    elif kind == "dense":
        x[:] = 1
    elif kind == "zero":
        x[:] = 0
    elif kind == "tied":
        values = rng.choice([-1.0, 1.0, 0.1], size=x.shape)
    elif kind == "integer":
        values = rng.integers(-9, 10, size=x.shape).astype(float)
    elif kind == "orders":
        values *= 10.0 ** rng.uniform(-6, 6, size=x.shape)
    elif kind == "rank one":
        values = np.outer(rng.normal(size=rows), rng.normal(size=columns))
    a, b = ensemble(rng, int(m), int(rows)), ensemble(rng, int(k), int(columns))
    if kind == "duplicate columns":
        a[:, rng.integers(rows)] = a[:, rng.integers(rows)]
        b[:, rng.integers(columns)] = b[:, rng.integers(columns)]
    elif kind == "empty columns":
        a[:, rng.integers(rows)] = 0
    elif kind == "empty rows":
        a[rng.integers(m)] = 0
        b[rng.integers(k)] = 0
    elif kind == "repeated rows":
        a[rng.integers(m)] = a[rng.integers(m)]
    elif kind == "one side":
        a = np.eye(int(rows))
    return x * values, a, b


def tensors(*arrays: Array) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)


def uniqueness_margin(x: Array, a: Array, b: Array) -> float:
    """The largest t for which some W has (AᵀWB)_S = sign(X_S) and |AᵀWB| ≤ 1 − t off S; −1 without W or full rank.

    X is the unique ℓ1 minimiser with its sketch exactly if the restricted operator is injective and t > 0.
    """
    operator = np.kron(a, b).T
    support = x.ravel() != 0
    if not support.any():
        return 1.0
    on, off = operator[support], operator[~support]
    if np.linalg.matrix_rank(on) < len(on):
        return -1.0
    cells = operator.shape[1]
    result = linprog(
        np.append(np.zeros(cells), -1.0),
        A_ub=np.vstack([np.c_[off, np.ones(len(off))], np.c_[-off, np.ones(len(off))]]) if len(off) else None,
        b_ub=np.ones(2 * len(off)) if len(off) else None,
        A_eq=np.c_[on, np.zeros(len(on))],
        b_eq=np.sign(x.ravel()[support]),
        bounds=[(None, None)] * cells + [(None, 1.0)],
        method="highs",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    return float(-result.fun) if result.status == 0 else -1.0


def smallest_norm(sketched: Array, a: Array, b: Array) -> float:
    """min ‖X‖₁ subject to A X Bᵀ = Y, by HiGHS on split variables."""
    operator = np.kron(a, b)
    scale = np.abs(sketched).max() or 1.0
    result = linprog(
        np.ones(2 * operator.shape[1]), A_eq=np.c_[operator, -operator], b_eq=sketched.ravel() / scale, method="highs"
    )
    assert result.status == 0
    return float(result.fun) * scale
