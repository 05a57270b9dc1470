"""An experiment's own keys, one `add` each, for scripts written for upstream Milkshake and `configargparse`.

    parser = add_input_args(Parser())
    parser.add("--epsilon", default=0.03, type=float, help="Largest change of a pixel.")
    args = parser.parse_args()

Keys of a group, with ranges, are a dataclass given to `framework.args.parse_args`.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import make_dataclass
from typing import Any, Literal, get_type_hints

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.args import read_settings
from milkshake_mbp.framework.settings import Data, Network, Optimization, Run, TrainerFlags, key_field, keys_of

__all__ = ["Parser", "add_input_args"]

_PLAIN = (bool, float, int, str)


class Parser:
    """Collects keys and reads them, from YAML files and the command line, as `framework.args` does.

    Args:
        args_for_setting_config_path: as configargparse has it; it is -c, --cfg and --config here.
        config_arg_is_required: whether a YAML file must be given.
    """

    def __init__(
        self, args_for_setting_config_path: Sequence[str] = ("-c",), config_arg_is_required: bool = False
    ) -> None:
        self._flags, self._config_required = tuple(args_for_setting_config_path), config_arg_is_required
        self._groups: list[type] = []
        self._own: list[tuple[str, Any, Any]] = []
        self._meanings: dict[str, str] = {}
        self._made: dict[str, Callable[[str], Any]] = {}
        self._defaults: dict[str, Any] = {}

    def add(
        self,
        *flags: str,
        default: Any = None,
        type: Callable[[str], Any] = str,
        choices: Sequence[Any] | None = None,
        nargs: str | None = None,
        help: str = "",
        dest: str | None = None,
    ) -> None:
        """Add a key, as `argparse.ArgumentParser.add_argument` does.

        Args:
            flags: its name, such as --epsilon.
            default: its value if it is not given.
            type: bool, int, float, str, or a function of the text. A function beside a default of true or false is
                taken for one that reads true and false.
            choices: the values that it may have.
            nargs: "*" or "+" for a list.
            help: its meaning.
            dest: its name in the configuration, if that is another.

        Raises:
            UserError: there is such a key already.
        """
        key = dest or next(flag for flag in flags if flag.startswith("--")).removeprefix("--").replace("-", "_")
        if any(key == name for name, _, _ in self._own) or key in keys_of(*self._groups):
            raise UserError(f"key {key!r} is added, but there is one of that name: choose another name")
        if choices is not None:
            hint: Any = Literal.__getitem__(tuple(choices))
        elif isinstance(default, bool):
            hint = bool
        elif type in _PLAIN:
            hint = type
        else:
            hint, self._made[key] = str, type
        if nargs in ("*", "+"):
            hint = list[hint]
        elif default is None:
            hint = hint | None
        self._own.append((key, hint, key_field(default if nargs is None else list(default or ()))))
        self._meanings[key] = help or "Of this experiment."

    add_argument = add

    def set_defaults(self, **defaults: Any) -> None:
        """Other values of keys that are not given."""
        self._defaults |= defaults

    def parse_args(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """The configuration.

        Args:
            argv: the words of the command line, by default those of this process.

        Raises:
            UserError: as `framework.args.read_settings`; or no YAML file is given, where one must be.
        """
        argv = sys.argv[1:] if argv is None else argv
        given = {word.partition("=")[0] for word in argv}
        if self._config_required and not given & {*self._flags, "-c", "--cfg", "--config", "-h", "--help"}:
            raise UserError("the configuration is missing: give -c FILE.yaml")
        lines = [f"    {key}: {meaning}" for key, meaning in self._meanings.items()]
        doc = "\n".join(["Experiment: keys of this script.", "", "Attributes:", *lines])
        own = make_dataclass("Experiment", self._own, namespace={"__doc__": doc}, frozen=True)
        groups = [_with_defaults(group, self._defaults) for group in (*self._groups, *([own] if self._own else []))]
        unknown = self._defaults.keys() - keys_of(*groups)
        if unknown:
            raise UserError(f"set_defaults: {', '.join(sorted(unknown))}: there is no such key")
        args = read_settings(argv, *groups)
        for key, make in self._made.items():
            value = getattr(args, key)
            if isinstance(value, str):
                setattr(args, key, make(value))
        return args


def add_input_args(parser: Parser) -> Parser:
    """Give a parser the framework's keys, those of Lightning's Trainer among them."""
    parser._groups += [Data, Network, Optimization, Run, TrainerFlags]
    return parser


def _with_defaults(group: type, defaults: dict[str, Any]) -> type:
    """The group with other defaults of some of its keys."""
    hints = get_type_hints(group)
    changed = [(key, hints[key], key_field(defaults[key])) for key in keys_of(group) & defaults.keys()]
    if not changed:
        return group
    return make_dataclass(group.__name__, changed, bases=(group,), namespace={"__doc__": group.__doc__}, frozen=True)
