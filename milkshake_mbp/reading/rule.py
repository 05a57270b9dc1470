"""A rule that selects by name which kernels of a module are pruned, and at which strengths."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from milkshake_mbp.errors import UserError
from milkshake_mbp.reading.network import Kernel

__all__ = ["PruneRule", "check_strength"]

_SHOWN = 12


@dataclass(frozen=True)
class PruneRule:
    """Which kernels Algorithm 1 prunes, and at which strengths; by default all kernels, at one strength.

    A kernel is a parameter of two or more dimensions by which a pass multiplies, or in which it looks up rows: of
    Linear, convolution, embedding, attention and recurrent layers, and bare parameters that are used in this way.
    Parameters of normalizations, biases, class tokens and added position embeddings are not kernels, and no rule
    selects them.

    A pattern may have *, ? and [...] as in a shell. It is matched with the name of a kernel's layer, such as
    `model.fc`, and of its parameter, such as `model.fc.weight`; `model.layer4.*` matches all kernels of that block.
    A pattern without a match is reported when a module is read, before training.

    Attributes:
        include: patterns of the kernels that are pruned; empty for all.
        exclude: patterns of kernels that are not pruned; they take precedence over `include`.
        strengths: d by pattern, for kernels with their own strength; the last matching pattern counts.

    Raises:
        UserError: a strength is not a number ≥ 0.

    Example:
        >>> kernels = [Kernel("net.conv", "net.conv.weight"), Kernel("net.fc", "net.fc.weight")]
        >>> PruneRule(strengths={"*.fc": 0.5}).of(kernels, 2.0)
        (2.0, 0.5)
        >>> PruneRule(exclude=("net.fc",)).of(kernels, 2.0)
        (2.0, None)
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    strengths: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            given = getattr(self, name)
            object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(given))
        for pattern, d in self.strengths.items():
            if check_strength(f"strength of {pattern}", d) == "auto":
                raise UserError(
                    f'strength of {pattern}: expected a number ≥ 0, got "auto", which is for a whole network'
                )

    def __bool__(self) -> bool:
        return bool(self.include or self.exclude or self.strengths)

    def of(self, kernels: Sequence[Kernel], d: float) -> tuple[float | None, ...]:
        """Each kernel's strength, d by default; None for a kernel that is not pruned.

        Raises:
            UserError: a pattern matches no kernel, or no kernel is left to prune.
        """
        self._check(kernels)
        found = tuple(self._strength(kernel, d) for kernel in kernels)
        if all(strength is None for strength in found):
            raise UserError("the rule leaves no layer to prune: put fewer patterns into exclude, or more into include")
        return found

    def _strength(self, kernel: Kernel, d: float) -> float | None:
        if (self.include and not _fits_any(self.include, kernel)) or _fits_any(self.exclude, kernel):
            return None
        fitting = [float(strength) for pattern, strength in self.strengths.items() if _fits(pattern, kernel)]
        return fitting[-1] if fitting else d

    def _check(self, kernels: Sequence[Kernel]) -> None:
        for kind, patterns in (("include", self.include), ("exclude", self.exclude), ("strengths", self.strengths)):
            for pattern in patterns:
                if not any(_fits(pattern, kernel) for kernel in kernels):
                    raise UserError(f'{kind}: no layer is called "{pattern}"{_advice(pattern, kernels)}')


def _fits(pattern: str, kernel: Kernel) -> bool:
    return fnmatchcase(kernel.layer, pattern) or fnmatchcase(kernel.parameter, pattern)


def _fits_any(patterns: Iterable[str], kernel: Kernel) -> bool:
    return any(_fits(pattern, kernel) for pattern in patterns)


def _advice(pattern: str, kernels: Sequence[Kernel]) -> str:
    names = [kernel.layer for kernel in kernels]
    nearest = [name for name in names if name.endswith(f".{pattern}")] or difflib.get_close_matches(pattern, names, n=1)
    hint = f'; did you mean "{nearest[0]}"?' if nearest else ":"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{hint} there are {', '.join(names[:_SHOWN])}{more}"


def check_strength(name: str, d: float | str) -> float | Literal["auto"]:
    """The strength itself; raises UserError unless it is "auto" or a number ≥ 0."""
    if d == "auto":
        return "auto"
    if isinstance(d, bool) or not isinstance(d, (int, float)) or not d >= 0:
        raise UserError(f'{name} must be "auto" or a number ≥ 0, got {d!r}')
    return float(d)
