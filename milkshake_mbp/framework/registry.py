"""Classes by the name that a configuration gives them, imported only when chosen."""

import difflib
from collections.abc import Mapping
from importlib import import_module
from typing import Any, TypeVar

from milkshake_mbp.errors import UserError

__all__ = ["import_path", "load_class"]

T = TypeVar("T")


def load_class(key: str, name: str, known: Mapping[str, str], parent: type[T]) -> type[T]:
    """The class that a configuration's key names.

    Args:
        key: the key, for the message.
        name: one of `known`, or a user's own class as "package.module:Class" or "package.module.Class".
        known: import paths by name.
        parent: what the class must inherit from.

    Raises:
        UserError: the name is unknown, cannot be imported, or is not a subclass of `parent`.
    """
    if name not in known and ":" not in name and "." not in name:
        # Of names that are equally near the one with the same first letter, which typing gets right most often.
        close = difflib.get_close_matches(name.lower(), known, n=len(known), cutoff=0.0)
        nearest = next((other for other in close[:3] if other[0] == name[:1].lower()), close[0])
        raise UserError(
            f"{key}: {name!r} is unknown, did you mean {nearest!r}? Known: {', '.join(known)}, "
            "or your own class as package.module:Class"
        )
    try:
        found = import_path(known.get(name, name))
    except ModuleNotFoundError as error:
        raise UserError(
            f"{key}: {name!r} needs the module {error.name!r}, which is not installed: install it or correct the name"
        ) from error
    except (AttributeError, ValueError) as error:
        raise UserError(f"{key}: {name!r} cannot be found: {error}") from error
    if not (isinstance(found, type) and issubclass(found, parent)):
        raise UserError(f"{key}: {name!r} is not a subclass of {parent.__module__}.{parent.__qualname__}")
    return found


def import_path(path: str) -> Any:
    """The object at "module:attribute" or "module.attribute"."""
    module, _, attribute = path.rpartition(":" if ":" in path else ".")
    return getattr(import_module(module), attribute)
