"""A user's configuration, from YAML files and the command line, as one flat namespace of checked values.

A value is text until its key's type is applied, both in a file and on the command line. So ``1e-4`` is a number and
``no`` is false in both, and wrong values have the same messages.
"""

import argparse
import contextlib
import difflib
import itertools
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import docstring_parser
import jsonargparse
import yaml

from milkshake_mbp.commands import advice, configuration, program
from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.settings import (
    PATHS,
    Data,
    Network,
    Optimization,
    Run,
    TrainerFlags,
    default_of,
    union_members,
)
from milkshake_mbp.framework.upstream_keys import REPLACED, WITHOUT_EFFECT

ALIASES = {
    "check_val_every_n_epochs": "check_val_every_n_epoch",
    "ckpt_every_n_epoch": "ckpt_every_n_epochs",
}
_CONFIG_FLAGS = ("-c", "--cfg", "--config")


@dataclass(frozen=True)
class Script:
    """The usage and notes in a script's help, and the keys that it does not use.

    Attributes:
        usage: usage of the script, after its name.
        notes: text at the end of the help.
        unused: keys that are not in the help. In a file they are ignored, since one file serves several scripts.
        why: reason in the message that refuses them on the command line, such as "it trains nothing".
        tolerant: whether to list unused keys and continue, instead of refusing them.
    """

    usage: str = "[-c FILE.yaml] [--key value ...]"
    notes: str = ""
    unused: frozenset[str] = frozenset()
    why: str = ""
    tolerant: bool = False


_ANY_SCRIPT = Script()


class Grid(NamedTuple):
    """The configurations that lists of values span.

    Attributes:
        axes: The values of every key with several values, in the given order.
        trials: Every combination of these as a configuration, with the last axis varying fastest; one without axes.
    """

    axes: dict[str, list[Any]]
    trials: list[argparse.Namespace]


def parse_args(argv: Sequence[str] | None = None, *settings: type, script: Script = _ANY_SCRIPT) -> argparse.Namespace:
    """Read the configuration of a training: `read_settings` with the framework's own groups of keys.

    Args:
        argv: The words of the command line, by default those of this process.
        *settings: An experiment's own groups of keys, written like those in the framework's ``settings``.
        script: The script that reads it.
    """
    return read_settings(argv, *_training_groups(settings), script=script)


def parse_grid(argv: Sequence[str] | None = None, *settings: type, script: Script = _ANY_SCRIPT) -> Grid:
    """Read the configurations of several trainings, as `parse_args` reads one.

    A list for a key that takes one value, or a list of lists for a key that takes a list, is an axis of the grid.

    Args:
        argv: The words of the command line, by default those of this process.
        *settings: An experiment's own groups of keys, written like those in the framework's ``settings``.
        script: The script that reads them.

    Returns:
        The grid, every configuration checked.

    Raises:
        UserError: As `read_settings`, and for a list without values or with one value twice.
        SystemExit: After printing the help, if asked for.
    """
    groups = _training_groups(settings)
    parser, given = _read_given(argv, groups, script)
    values, axes = {}, {}
    for key, (value, source) in given.items():
        hint = _all_hints(groups)[key]
        if _is_axis(hint, value):
            axes[key] = _distinct(key, source, [_convert(parser, key, hint, item, source) for item in value])
        else:
            values[key] = _convert(parser, key, hint, value, source)
    points = (dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values()))
    return Grid(axes, [_check(groups, values | point) for point in points])


def read_settings(argv: Sequence[str] | None, *groups: type, script: Script = _ANY_SCRIPT) -> argparse.Namespace:
    """Read the configuration: the command line takes precedence over YAML files, and these over the defaults.

    Args:
        argv: The words of the command line, by default those of this process. ``-c FILE.yaml`` may stand
            anywhere and be repeated, a later file going over an earlier one. A key of true or false may stand
            alone, meaning true.
        *groups: The groups of keys, written like those in the framework's ``settings``; a key belongs to one only.
        script: The script that reads them.

    Returns:
        The value of every key, each of a type that YAML can hold.

    Raises:
        UserError: For an unknown key, one that the script does not use, a key given twice in a file, a value of
            the wrong type or out of range, and a file that cannot be read; in one line that names the key or the file.
        SystemExit: After printing the help, if asked for.
    """
    parser, given = _read_given(argv, groups, script)
    hints = _all_hints(groups)
    for key, (value, source) in given.items():
        if _is_axis(hints[key], value):
            raise UserError(
                f"{key} {source}: {_quote(value)} is a list of values, and this script runs one configuration: "
                f"give one ({_expected(hints[key])})"
            )
    return _check(groups, {key: _convert(parser, key, hints[key], *given[key]) for key in given})


def config_dict(args: argparse.Namespace) -> dict[str, Any]:
    """The configuration as plain values, which give ``args`` again if written as YAML and read with the same groups.

    Paths are absolute, so that it means the same in any working directory.
    """
    return {key: _absolute(value) if key in PATHS else value for key, value in vars(args).items()}


def trainer_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of Lightning's Trainer that are keys; its logger, callbacks and folders are not."""
    flags = {key: getattr(args, key) for key in _hints(TrainerFlags)}
    if steps := getattr(args, "check_val_every_n_steps", None):
        # Without the second, Lightning counts the batches of each epoch anew.
        flags |= {"val_check_interval": steps, "check_val_every_n_epoch": None}
    return flags


class _Given(NamedTuple):
    """What was written for a key, before its type is applied, and where."""

    value: Any
    source: str


class _Loader(yaml.SafeLoader):
    """Leaves every scalar but null as text, because the type of the key decides what it is."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith(":null")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _HelpFormatter(argparse.HelpFormatter):
    """Leaves a column wide enough for most keys and their types."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)


def _training_groups(settings: Sequence[type]) -> list[type]:
    return [Data, Network, Optimization, Run, *settings, TrainerFlags]


def _read_given(
    argv: Sequence[str] | None, groups: Sequence[type], script: Script
) -> tuple[jsonargparse.ArgumentParser, dict[str, _Given]]:
    """What was written for every key, and the parser that knows their types."""
    hints = _all_hints(groups)
    parser = _build_parser(tuple(groups), script)
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        parser.prog = program()
        parser.print_help()
        raise SystemExit(0)

    paths, flags = _read_command_line(argv, hints)
    _refuse_unused([key for key in flags if key in script.unused], script)
    given: dict[str, _Given] = {}
    for newer in (*(_read_file(path, hints) for path in paths), flags):
        # A key stands where it was last given, so that axes come in the order in which they are read.
        given = {key: value for key, value in given.items() if key not in newer} | newer
    return parser, given


def _check(groups: Sequence[type], values: Mapping[str, Any]) -> argparse.Namespace:
    """The values of every key of the groups, checked by them; lists are the configuration's own."""
    args = argparse.Namespace()
    for group in groups:
        try:
            checked = group(**{key: _at_home(key, copy(values[key])) for key in _hints(group) if key in values})
        except ValueError as error:
            raise UserError(_one_line(error)) from error
        vars(args).update({key: getattr(checked, key) for key in _hints(group)})
    return args


def _refuse_unused(keys: Sequence[str], script: Script) -> None:
    if not keys:
        return
    because = f": {script.why}" if script.why else ""
    if not script.tolerant:
        raise UserError(f"{keys[0]} on the command line: this script does not use it{because}; leave it out")
    print(f"ignored: {', '.join(keys)}, which this script does not use{because}")


def _at_home(key: str, value: Any) -> Any:
    """A path with `~` written out; any other value as it is."""
    if key not in PATHS or not value:
        return value
    return [_at_home(key, path) for path in value] if isinstance(value, list) else str(Path(value).expanduser())


def _absolute(value: Any) -> Any:
    """A path, or each of a list, from the root; no path is none still."""
    if isinstance(value, list):
        return [_absolute(path) for path in value]
    return os.path.abspath(value) if value else value  # noqa: PTH100 (Path.absolute keeps "..")


def _is_axis(hint: Any, value: Any) -> bool:
    """Whether ``value``, as written, is a list of values for its key rather than one that is a list."""
    if not isinstance(value, list):
        return False
    return not _takes_list(hint) or (bool(value) and all(isinstance(item, list) for item in value))


def _distinct(key: str, source: str, values: list[Any]) -> list[Any]:
    """The values of an axis, of which there must be some, and none twice."""
    if not values:
        raise UserError(f"{key} {source}: [] holds no value: give at least one, or leave the key out")
    for index, value in enumerate(values):
        if value in values[:index]:
            raise UserError(f"{key} {source}: {_quote(value)} is given twice: keep one of the two")
    return values


def _read_command_line(argv: Sequence[str], hints: Mapping[str, Any]) -> tuple[list[str], dict[str, _Given]]:
    """The configuration files named on the command line, and the values given there."""
    source = "on the command line"
    flags: list[tuple[str, list[str]]] = []
    for word in argv:
        if re.match(r"--?[A-Za-z]", word):
            flag, equals, value = word.partition("=")
            flags.append((flag, [value] if equals else []))
        elif flags:
            flags[-1][1].append(word)
        else:
            raise UserError(f"{_quote(word)} {source} has no key: write --key value, or -c FILE.yaml")

    paths: list[str] = []
    given: dict[str, _Given] = {}
    for flag, words in flags:
        if flag in _CONFIG_FLAGS:
            if not words:
                raise UserError(f"{flag} {source}: expected a YAML file, got nothing")
            paths += words
            continue
        name = flag.removeprefix("--")
        if _has_no_effect(name, source):
            continue
        key = _known_key(name, source, hints)
        if not words and bool in union_members(hints[key]):
            words = ["true"]
        elif not words and not _takes_list(hints[key]):
            raise UserError(f"{key} {source}: expected {_expected(hints[key])}, got nothing")
        given.pop(key, None)
        given[key] = _Given(_value(words), source)
    return paths, given


def _value(words: list[str]) -> Any:
    """The value that words of the command line spell; a bracketed list means what it means in a file."""
    text = " ".join(words)
    if text.startswith("[") and text.endswith("]"):
        with contextlib.suppress(yaml.YAMLError):
            # `[1, 2]` in one word or two is that list; `[1] [2]` is a list of two.
            return yaml.load(text, _Loader)
        with contextlib.suppress(yaml.YAMLError):
            return [yaml.load(word, _Loader) for word in words]
    return words[0] if len(words) == 1 else words


def _read_file(path: str, hints: Mapping[str, Any]) -> dict[str, _Given]:
    """The values given in a YAML file."""
    source = f"in {path}"
    given: dict[str, _Given] = {}
    try:
        with configuration(path).open("rb") as stream:
            loader = _Loader(stream)
            root = loader.get_single_node()
            if root is None:
                return {}
            if not isinstance(root, yaml.MappingNode):
                raise UserError(f'{path} is not a configuration: expected lines of the form "key: value"')
            for key_node, value_node in root.value:
                name = str(loader.construct_object(key_node, deep=True))
                value = loader.construct_object(value_node, deep=True)
                line = key_node.start_mark.line + 1
                if isinstance(value, dict):
                    raise UserError(
                        f"key {_quote(name)} {source} holds nested keys at line {line}: write them unnested"
                    )
                if _has_no_effect(name, source):
                    continue
                key = _known_key(name, source, hints)
                if key in given:
                    raise UserError(f"key {_quote(name)} {source} is given again at line {line}: keep one of the two")
                given[key] = _Given(value, source)
    except OSError as error:
        raise UserError(f"cannot read configuration file {path}: {error.strerror}{advice(path)}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {_one_line(error)}") from error
    return given


def _has_no_effect(name: str, source: str) -> bool:
    """Whether upstream Milkshake reads this key and does nothing with it, in which case that is said."""
    if name in WITHOUT_EFFECT:
        print(f"ignored: {name} {source}: {WITHOUT_EFFECT[name]}")
    return name in WITHOUT_EFFECT


def _known_key(name: str, source: str, hints: Mapping[str, Any]) -> str:
    """The key that ``name`` stands for."""
    key = ALIASES.get(name, name)
    if key in hints:
        return key
    if name in REPLACED:
        raise UserError(f"unknown key {_quote(name)} {source}: {REPLACED[name]}")
    nearest = difflib.get_close_matches(name, [*hints, *ALIASES], n=1)
    advice = f'did you mean "{nearest[0]}"?' if nearest else "--help lists the keys"
    raise UserError(f"unknown key {_quote(name)} {source}: {advice}")


def _convert(parser: jsonargparse.ArgumentParser, key: str, hint: Any, value: Any, source: str) -> Any:
    """``value``, as written, in the type of its key."""
    shown, expected = _quote(value), _expected(hint)
    if isinstance(value, list) and not _takes_list(hint):
        raise UserError(f"{key} {source}: {shown} is a list where one value was expected ({expected})")
    if get_origin(hint) is list and isinstance(value, str) and not value.startswith("["):
        value = [value]
    with contextlib.suppress(argparse.ArgumentError):
        converted = parser.parse_object({key: value}, defaults=False)[key]
        # The parser takes null for any type.
        if converted is not None or NoneType in union_members(hint):
            return converted
    nearest = difflib.get_close_matches(str(value), _choices(hint), n=1)
    advice = f'; did you mean "{nearest[0]}"?' if nearest else ""
    raise UserError(f"{key} {source}: expected {expected}, got {shown}{advice}")


@cache
def _build_parser(groups: tuple[type, ...], script: Script) -> jsonargparse.ArgumentParser:
    """A parser that knows the type of every key and can print the help."""
    parser = jsonargparse.ArgumentParser(
        exit_on_error=False,
        formatter_class=_HelpFormatter,
        usage=f"%(prog)s {script.usage}",
        description="Every key can be set in a YAML file or on the command line, which takes precedence.",
        epilog=script.notes or None,
    )
    parser.add_argument(*_CONFIG_FLAGS, metavar="FILE.yaml", help="Read keys from this file; may be repeated.")
    for group in groups:
        documented = docstring_parser.parse(group.__doc__ or "")
        meaning = {param.arg_name: param.description or "" for param in documented.params}
        section = parser.add_argument_group((documented.short_description or group.__name__).rstrip("."))
        for item in fields(group):
            hint = _hints(group)[item.name]
            action = section.add_argument(
                f"--{item.name}",
                type=hint,
                metavar="path" if item.name in PATHS else _metavar(hint),
                help=_help(meaning.get(item.name, ""), hint, default_of(item)),
            )
            if item.name in script.unused:
                action.help = argparse.SUPPRESS
            # For a list the parser adds a flag that appends, which the help would show beside the key.
            action.option_strings = [f"--{item.name}"]
    return parser


def _help(meaning: str, hint: Any, default: Any) -> str:
    """The help of a key, with its choices where they are too many for its column, and its default if there is one."""
    shown = default if isinstance(default, str) else json.dumps(default)
    if _metavar(hint) == "name":
        meaning = f"{meaning.rstrip('.')}: {', '.join(choice for choice in _choices(hint) if choice != 'null')}"
    suffix = "" if default in (None, "", []) else f" (default: {shown})"
    return f"{meaning.rstrip('.')}{suffix}".replace("%", "%%")


def _all_hints(groups: Sequence[type]) -> dict[str, Any]:
    return {key: hint for group in groups for key, hint in _hints(group).items()}


def _hints(group: type) -> dict[str, Any]:
    """The keys of a group, in order, and their types."""
    hints = get_type_hints(group)
    return {item.name: hints[item.name] for item in fields(group)}


def _takes_list(hint: Any) -> bool:
    return any(get_origin(member) is list for member in union_members(hint))


def _choices(hint: Any) -> list[str]:
    """The values that a type allows, in a user's words."""
    words = {bool: ["true", "false"], int: ["integer"], float: ["number"], str: ["text"], NoneType: ["null"]}
    choices: list[str] = []
    for member in union_members(hint):
        if get_origin(member) is Literal:
            choices += map(str, get_args(member))
        elif get_origin(member) is list:
            choices += [f"[{' or '.join(_choices(get_args(member)[0]))}, ...]"]
        else:
            choices += words.get(member, [str(member)])
    return list(dict.fromkeys(choices))


def _expected(hint: Any) -> str:
    return " or ".join(_choices(hint))


def _metavar(hint: Any) -> str:
    """The values that a type allows, short enough for a column of the help."""
    choices = [choice for choice in _choices(hint) if choice != "null"]
    return "|".join(choices) if len(choices) <= 5 else "name"


def _quote(value: Any) -> str:
    """``value`` as it is shown in an error: in one line, text in quotes."""
    return json.dumps(value, default=str, ensure_ascii=False)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
