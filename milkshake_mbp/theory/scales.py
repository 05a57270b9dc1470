"""What the measures take for the size of a layer: of its kernel matrix, of its Fourier symbol, or of its operator."""

from collections.abc import Callable, Sequence

from milkshake_mbp.theory.layers import Layer
from milkshake_mbp.theory.measured import LayerScales
from milkshake_mbp.theory.norms import frobenius_norm, log_group_norm, reshaped_norm
from milkshake_mbp.theory.perturbation import safe_log
from milkshake_mbp.theory.symbol import grid_norm

__all__ = ["fourier_scales", "kernel_scales", "operator_scales"]


def kernel_scales(layers: Sequence[Layer], moved: Sequence[Layer] = ()) -> LayerScales:
    """‖gain·K‖₂ and ‖gain·K‖_F of the kernel matrices, below the norms of the operators.

    Args:
        layers: in forward order.
        moved: what they differ by from the initial layers (`Layer.difference`); empty if that is not known.
    """
    return _scales(layers, moved, _reshaped, _frobenius)


def fourier_scales(layers: Sequence[Layer], moved: Sequence[Layer], grid: Sequence[int]) -> LayerScales:
    """The same by the largest singular value of the kernel's Fourier symbol on one grid, strides ignored (`grid_norm`).

    Args:
        layers: in forward order.
        moved: as for `kernel_scales`.
        grid: spatial sizes of the network's input.
    """

    def norm(layer: Layer) -> float:
        fits = layer.window is not None and len(layer.window.size) == len(grid)
        return safe_log(grid_norm(layer, grid)) if fits else _reshaped(layer)

    return _scales(layers, moved, norm, _frobenius)


def operator_scales(layers: Sequence[Layer], moved: Sequence[Layer], norm: Callable[[Layer], float]) -> LayerScales:
    """Upper ends of ‖A‖₂, and ‖A‖_F, of the operators.

    Args:
        layers: in forward order.
        moved: as for `kernel_scales`.
        norm: from a layer to an upper bound on ‖A‖₂.
    """
    return _scales(layers, moved, lambda layer: safe_log(norm(layer)), lambda layer: log_group_norm(layer, 2, 2))


def _scales(
    layers: Sequence[Layer],
    moved: Sequence[Layer],
    spectral: Callable[[Layer], float],
    frobenius: Callable[[Layer], float],
) -> LayerScales:
    return LayerScales(*(tuple(map(size, of)) for of in (layers, moved) for size in (spectral, frobenius)))


def _reshaped(layer: Layer) -> float:
    return safe_log(float(reshaped_norm(layer)))


def _frobenius(layer: Layer) -> float:
    return safe_log(float(frobenius_norm(layer.effective_kernel)))
