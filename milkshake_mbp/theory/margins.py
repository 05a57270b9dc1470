"""Margins and the empirical margin loss (paper §3.1)."""

import torch
from torch import Tensor

__all__ = ["error_rate", "margin_loss", "margins"]


def margins(logits: Tensor, targets: Tensor) -> Tensor:
    """f(x)[y] − max_{j≠y} f(x)[j] for every sample.

    Args:
        logits: (n, k) network outputs, k ≥ 2.
        targets: (n,) class indices in [0, k).

    Returns:
        (n,) float64 margins on the logits' device; NaN where a sample's logits hold a NaN.

    Raises:
        ValueError: the shapes do not match, or k < 2.

    Example:
        >>> margins(torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 5.0]]), torch.tensor([0, 1]))
        tensor([ 2., -3.], dtype=torch.float64)
    """
    if logits.ndim != 2 or logits.shape[1] < 2 or targets.shape != logits.shape[:1]:
        raise ValueError(
            f"margins need (n, k ≥ 2) logits and (n,) targets, got {tuple(logits.shape)} and {tuple(targets.shape)}"
        )
    outputs = logits.double()
    column = targets.long().unsqueeze(1)
    correct = outputs.gather(1, column).squeeze(1)
    return correct - outputs.scatter(1, column, -torch.inf).amax(dim=1)


def margin_loss(margins: Tensor, gamma: float) -> float:
    """Fraction of the margins strictly below gamma; a NaN margin counts as an error.

    Definition 3.1 writes ≥ γ, which would count the correct samples (erratum E1); strict < is the released code's
    reading and the limit from below of the ≤ that the theory needs.

    Args:
        margins: (n,) margins.
        gamma: the required margin, in units of the network's output.

    Returns:
        A probability: the empirical margin loss R̂_γ.

    Example:
        >>> margin_loss(torch.tensor([-1.0, 0.5, 2.0, 3.0]), 2.0)
        0.5
    """
    return 1.0 - (margins.double() >= gamma).double().mean().item()


def error_rate(margins: Tensor, gamma: float = 0.0) -> float:
    """Fraction of the margins not above gamma: R̂_γ with ≤, as a compression bound needs it (erratum E1).

    At γ = 0 a tie counts as an error; a NaN always does.

    Args:
        margins: (n,) margins.
        gamma: in units of the network's output.

    Returns:
        A probability.

    Example:
        >>> error_rate(torch.tensor([-1.0, 0.0, 2.0, 3.0]))
        0.5
    """
    return 1.0 - (margins.double() > gamma).double().mean().item()
