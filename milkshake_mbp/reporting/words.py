"""Numbers as people read them: the same number has the same digits in terminal, tables, figures and pages."""

import math
from collections.abc import Sequence
from decimal import ROUND_CEILING, Decimal
from typing import Any

__all__ = [
    "at_most",
    "duration",
    "show",
    "show_bits",
    "show_log",
    "show_percent",
    "show_shape",
    "show_strength",
    "show_tick",
]


def show_percent(value: float | None, digits: int = 2) -> str:
    """A probability."""
    return "unknown" if value is None else f"{value:.{digits}%}"


def show_tick(value: float, _: object = None) -> str:
    """A probability at an axis, as short as it can be: 60%, 0.5%."""
    return f"{100 * value:.4g}%"


def at_most(bound: float, digits: int = 2) -> str:
    """A bound on a probability in percent, rounded up, so that what is said is proved."""
    return f"{100 * Decimal(bound).quantize(Decimal(1).scaleb(-digits - 2), ROUND_CEILING):.{digits}f}%"


def show(value: Any, form: str = "{:.4g}") -> str:
    """A number in that form, text as it is."""
    if value is None:
        return "unknown"
    if not isinstance(value, (int, float)):
        return str(value)
    return form.format(value) if math.isfinite(value) else "∞" if value > 0 else "−∞" if value < 0 else "not a number"


def show_strength(d: float | None) -> str:
    """A strength of pruning."""
    return show(d, "{:.3g}")


def show_log(value: float) -> str:
    """A natural log."""
    # Adding 0 makes 0.00 of -0.00.
    return show(round(value, 2) + 0 if math.isfinite(value) else value, "{:.2f}")


def show_bits(value: float) -> str:
    """A count of bits, infinite where there is no code."""
    return f"{value:,.0f}" if math.isfinite(value) else "–"


def show_shape(shape: Sequence[int]) -> str:
    """A tensor's sides."""
    return " × ".join(map(str, shape))


def duration(seconds: float) -> str:
    """Seconds in words."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
