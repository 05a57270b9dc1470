"""Small random layers of every kind, and their maps written out as matrices."""

import math

import numpy as np
import torch

from milkshake_mbp.theory.layers import Layer, Window


def convolution(
    channels: tuple[int, int],
    size: tuple[int, ...],
    image: tuple[int, ...],
    *,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    gain: bool = False,
    bias: bool = False,
    seed: int = 0,
) -> Layer:
    """A convolution of `channels` (in, out) with a Gaussian kernel."""
    stride, padding, dilation = (
        value if isinstance(value, tuple) else (value,) * len(size) for value in (stride, padding, dilation)
    )
    rng = np.random.default_rng(seed)
    outputs = tuple(
        (h + 2 * p - d * (k - 1) - 1) // s + 1
        for h, k, s, p, d in zip(image, size, stride, padding, dilation, strict=True)
    )
    assert min(outputs) > 0
    return Layer(
        f"convolution {seed}",
        torch.tensor(rng.standard_normal((channels[1], channels[0] // groups * math.prod(size)))),
        (channels[0], *image),
        (channels[1], *outputs),
        Window(size, stride, padding, dilation, groups),
        torch.tensor(rng.standard_normal(channels[1])) if gain else None,
        torch.tensor(rng.standard_normal(channels[1])) if bias else None,
    )


def random_convolution(seed: int, largest: int = 9, dimensions: tuple[int, ...] = (1, 2, 2, 2)) -> Layer:
    """Any stride, padding, dilation and groups, down to images smaller than what the kernel spans."""
    rng = np.random.default_rng(seed)
    while True:
        axes = int(rng.choice(dimensions))
        groups = int(rng.choice([1, 1, 2, 3]))
        channels = (groups * int(rng.integers(1, 4)), groups * int(rng.integers(1, 4)))
        size, stride, padding, dilation, image = (
            tuple(rng.integers(low, high, axes).tolist())
            for low, high in ((1, 6), (1, 5), (0, 4), (1, 4), (1, largest + 1))
        )
        if all(h + 2 * p > d * (k - 1) for h, p, d, k in zip(image, padding, dilation, size, strict=True)):
            return convolution(
                channels,
                size,
                image,
                stride=stride,
                padding=padding,
                dilation=dilation,
                groups=groups,
                gain=bool(rng.random() < 0.3),
                seed=seed,
            )


def linear(shape: tuple[int, int], *, gain: bool = False, bias: bool = False, seed: int = 0) -> Layer:
    """A Linear layer of shape (out, in)."""
    rng = np.random.default_rng(seed)
    return Layer(
        f"linear {seed}",
        torch.tensor(rng.standard_normal(shape)),
        (shape[1],),
        (shape[0],),
        None,
        torch.tensor(rng.standard_normal(shape[0])) if gain else None,
        torch.tensor(rng.standard_normal(shape[0])) if bias else None,
    )


def unrolled(layer: Layer) -> np.ndarray:
    """The layer's map without its bias, (outputs, inputs), one unit vector at a time, by the definition."""
    without = Layer(layer.name, layer.kernel, layer.inputs, layer.outputs, layer.window, layer.gain)
    unit = torch.eye(math.prod(layer.inputs), dtype=torch.float64)
    return without(unit.reshape(-1, *layer.inputs)).flatten(1).numpy().T


def spectral(matrix: np.ndarray) -> float:
    return float(np.linalg.svd(matrix, compute_uv=False)[0])
