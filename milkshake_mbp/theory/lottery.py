"""Lottery tickets (paper §6): a small network found by pruning a large random one, and what its bound counts."""

import math
from typing import TypeVar

from torch import Tensor

__all__ = ["log_ticket_width", "ticket_parameters"]

Numbers = TypeVar("Numbers", float, Tensor)


def log_ticket_width(width: int, depth: int, log_epsilon: Numbers, delta: float = 0.05) -> Numbers:
    """Ln D_G, the width of a random network that hides a target within ε: ln[n_M⁵L²/ε²·ln(n_M L/δ)].

    The polynomial of Theorem 6.1 to leading order, its constant 1 (Malach et al. 2020, in the form that Pensia et al.
    2020 give it).

    Args:
        width: n_M, the target's widest hidden layer.
        depth: L, the target's layers.
        log_epsilon: ln ε, a number or (m,) of them: the imitation error, in ℓ2 on the unit ball.
        delta: δ, the probability that no such ticket exists.
    """
    log_factor = math.log(max(1.0, math.log(width * depth / delta)))
    return 5 * math.log(width) + 2 * math.log(depth) + log_factor - 2 * log_epsilon


def ticket_parameters(width: int, input_dim: int, depth: int, log_ticket_width: Numbers) -> Numbers:
    """[n_M d_0 + L n_M²] ln² D_G, the sketched parameters of Theorem 6.2 (n_M for Theorem 6.1's D_G: erratum E18).

    Args:
        width: n_M.
        input_dim: d_0.
        depth: L.
        log_ticket_width: ln D_G.
    """
    return (width * input_dim + depth * width**2) * log_ticket_width**2
