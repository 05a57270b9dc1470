import argparse
import inspect
import itertools
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import yaml
from pytorch_lightning import Trainer
from pytorch_lightning.accelerators import AcceleratorRegistry

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework import settings
from milkshake_mbp.framework.args import Script, config_dict, parse_args, parse_grid, read_settings, trainer_kwargs
from milkshake_mbp.framework.datamodules import DATAMODULES
from milkshake_mbp.framework.models import MODELS
from milkshake_mbp.framework.models.ffn import ACTIVATIONS
from milkshake_mbp.framework.settings import PATHS, require


@dataclass(frozen=True)
class Shape:
    """Shape: a group that an experiment adds.

    Attributes:
        d: Scale of the shape.
        sides: Its sides.
    """

    d: float | Literal["auto"] = "auto"
    sides: int | None = None

    def __post_init__(self) -> None:
        require(self, "auto or a number above 0", lambda d: d == "auto" or d > 0, "d")
        if self.sides == 13:
            raise ValueError("sides: 13\nis unlucky")


@pytest.fixture(autouse=True)
def _in_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def parse(text: str | bytes, *argv: str) -> argparse.Namespace:
    """Parse ``argv`` with ``text`` as the configuration file x.yaml."""
    Path("x.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    return parse_args(["-c", "x.yaml", *argv])


def refusal(text: str | bytes | None, *argv: str) -> str:
    """The error that a configuration raises, which must be one line."""
    with pytest.raises(UserError) as caught:
        parse_args(argv, Shape) if text is None else parse(text, *argv)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def test_defaults() -> None:
    args = parse_args([])
    assert type(args) is argparse.Namespace
    assert (args.model, args.lr, args.lr_steps, args.image_size) == ("ffn", 0.02, [], None)
    assert (args.max_epochs, args.devices, args.deterministic, args.num_sanity_val_steps) == (10, 1, True, 0)


def test_defaults_are_not_shared_between_calls() -> None:
    parse_args([]).lr_steps.append(1)
    assert parse_args([]).lr_steps == []


@pytest.mark.parametrize(
    "argv", [["--lr", "1", "-c", "x.yaml"], ["--cfg", "x.yaml", "--lr", "1"], ["--config=x.yaml", "--lr=1"]]
)
def test_command_line_goes_over_file_wherever_it_stands(argv: list[str]) -> None:
    Path("x.yaml").write_text("lr: 3\nmomentum: 0.5\n")
    args = parse_args(argv)
    assert (args.lr, args.momentum, args.batch_size) == (1.0, 0.5, 256)


def test_a_later_file_goes_over_an_earlier_one() -> None:
    Path("a.yaml").write_text("lr: 3\nmomentum: 0.5\n")
    Path("b.yaml").write_text("lr: 4\n")
    args = parse_args(["-c", "a.yaml", "-c", "b.yaml"])
    assert (args.lr, args.momentum) == (4.0, 0.5)


def test_an_empty_file_sets_nothing() -> None:
    assert parse("# nothing\n") == parse_args([])


def test_argv_defaults_to_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["mbp.py", "--seed", "7"])
    assert parse_args().seed == 7


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("lr", "1e-4", 1e-4),
        ("lr", "3", 3.0),
        ("lr_steps", "[3, 5]", [3, 5]),
        ("metrics", "acc", ["acc"]),
        ("image_size", "null", None),
        ("weights", "no", "no"),
        ("data_dir", "2024-01-01", "2024-01-01"),
        ("wandb_project", "17", "17"),
        ("limit_train_batches", "3", 3),
        ("limit_train_batches", "1.0", 1.0),
        ("devices", "[0, 1]", [0, 1]),
        ("devices", "auto", "auto"),
        ("max_time", "12:00:00", "12:00:00"),
        ("deterministic", "warn", "warn"),
        ("profiler", "simple", "simple"),
        ("max_epochs", "-1", -1),
    ],
)
def test_a_value_means_the_same_in_a_file_and_on_the_command_line(key: str, text: str, value: Any) -> None:
    for args in (parse(f"{key}: {text}"), parse_args([f"--{key}", text]), parse_args([f"--{key}={text}"])):
        assert getattr(args, key) == value
        assert type(getattr(args, key)) is type(value)


@pytest.mark.parametrize("text", ["true", "True", "yes", "false", "False", "no"])
def test_booleans(text: str) -> None:
    expected = text.lower() in ("true", "yes")
    assert parse(f"wandb: {text}").wandb is expected
    assert parse_args(["--wandb", text]).wandb is expected


def test_bare_flags_and_lists_of_words() -> None:
    args = parse_args(["--debug", "--lr_steps", "3", "5", "--metrics", "--no_test"])
    assert (args.debug, args.lr_steps, args.metrics, args.no_test) == (True, [3, 5], [], True)


@pytest.mark.parametrize("stem", ["check_val_every_n_epoch", "ckpt_every_n_epoch"])
def test_singular_and_plural(stem: str) -> None:
    for key in (stem, f"{stem}s"):
        for args in (parse(f"{key}: 3"), parse_args([f"--{key}", "3"])):
            (known,) = [name for name in vars(args) if name.startswith(stem)]
            assert getattr(args, known) == 3


def test_unknown_keys() -> None:
    expected = 'unknown key "ffn_hiden_dim" {}: did you mean "ffn_hidden_dim"?'
    assert refusal("ffn_hiden_dim: 3") == expected.format("in x.yaml")
    assert refusal(None, "--ffn_hiden_dim", "3") == expected.format("on the command line")
    assert refusal("qqq: 3") == 'unknown key "qqq" in x.yaml: --help lists the keys'
    # Not an abbreviation of ffn_hidden_dim.
    assert "unknown key" in refusal(None, "--ffn_hidden", "3")
    assert "unknown key" in refusal("[lr]: 3")


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("lr", "fast", 'expected number, got "fast"'),
        ("lr", "null", "expected number, got "),
        ("ffn_hidden_dim", "5.5", 'expected integer, got "5.5"'),
        ("ffn_hidden_dim", "true", 'expected integer, got "true"'),
        ("bias", "2", 'expected true or false, got "2"'),
        ("optimizer", "rmsprop", 'expected adam or adamw or sgd, got "rmsprop"'),
        ("lr_steps", "[a]", "expected [integer, ...], got "),
        ("image_size", "big", 'expected integer or null, got "big"'),
        ("max_epochs", "ten", 'expected integer or null, got "ten"'),
    ],
)
def test_wrong_types(key: str, text: str, expected: str) -> None:
    assert refusal(f"{key}: {text}").startswith(f"{key} in x.yaml: {expected}")
    assert refusal(None, f"--{key}", text).startswith(f"{key} on the command line: {expected}")


def test_a_list_for_one_value() -> None:
    expected = 'lr {}: ["0.1", "0.2"] is a list of values, and this script runs one configuration: give one (number)'
    assert refusal("lr: [0.1, 0.2]") == expected.format("in x.yaml")
    for words in (["0.1", "0.2"], ["[0.1,0.2]"], ["[0.1,", "0.2]"]):
        assert refusal(None, "--lr", *words) == expected.format("on the command line")
    assert "give one ([integer, ...])" in refusal("lr_steps: [[3], [5]]")


def test_a_grid_is_every_combination_the_last_axis_fastest() -> None:
    Path("x.yaml").write_text("lr: [1, 2, 3]\nmomentum: 0.5\nseed: [1, 2]\n")
    grid = parse_grid(["-c", "x.yaml", "--lr", "0.1", "1e-2", "--d=[auto,3]"], Shape)
    assert grid.axes == {"seed": [1, 2], "lr": [0.1, 0.01], "d": ["auto", 3.0]}
    points = [(trial.seed, trial.lr, trial.d) for trial in grid.trials]
    assert points == list(itertools.product([1, 2], [0.1, 0.01], ["auto", 3.0]))
    assert {trial.momentum for trial in grid.trials} == {0.5}
    assert vars(grid.trials[0]) == vars(parse_args(["--momentum=.5", "--seed=1", "--lr=.1"], Shape))


@pytest.mark.parametrize(
    ("key", "text", "values"),
    [
        ("seed", "[3]", [3]),
        ("bias", "[yes, no]", [True, False]),
        ("image_size", "[8, null]", [8, None]),
        ("weights", "[a.ckpt, 7]", ["a.ckpt", "7"]),
        ("lr_steps", "[[3, 5], [], [7]]", [[3, 5], [], [7]]),
        ("metrics", "[[loss], [loss, acc]]", [["loss"], ["loss", "acc"]]),
        ("devices", "[[0], [0, 1]]", [[0], [0, 1]]),
    ],
)
def test_an_axis_means_the_same_in_a_file_and_on_the_command_line(key: str, text: str, values: list[Any]) -> None:
    Path("x.yaml").write_text(f"{key}: {text}")
    for argv in (["-c", "x.yaml"], [f"--{key}", text], [f"--{key}={text}"], [f"--{key}", *text.split()]):
        grid = parse_grid(argv)
        assert grid.axes == {key: values}
        assert [getattr(trial, key) for trial in grid.trials] == values


@pytest.mark.parametrize("words", ["--lr_steps 3 5", "--lr_steps [3,5]", "--devices 0 1", "--metrics loss acc", ""])
def test_keys_that_are_lists_by_nature_stay_lists(words: str) -> None:
    grid = parse_grid(words.split())
    assert (grid.axes, grid.trials) == ({}, [parse_args(words.split())])


def test_bracketed_words_are_lists_each() -> None:
    assert parse_grid(["--lr_steps", "[3,5]", "[7]"]).axes == {"lr_steps": [[3, 5], [7]]}


def test_lists_are_not_shared_between_trials() -> None:
    first, second = parse_grid(["--seed", "1", "2", "--lr_steps", "3"]).trials
    first.lr_steps.append(5)
    assert second.lr_steps == [3]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: []", "seed in x.yaml: [] holds no value"),
        ("seed: [1, 2, 1]", "seed in x.yaml: 1 is given twice"),
        ("lr: [1, 1.0]", "lr in x.yaml: 1.0 is given twice"),
        ("lr: [1, fast]", 'lr in x.yaml: expected number, got "fast"'),
        ("lr: [1, null]", "lr in x.yaml: expected number, got "),
        ("lr: [1, 0]", "lr: expected a finite number above 0, got 0.0"),
        ("lr: [[1], [2]]", 'lr in x.yaml: ["1"] is a list where one value was expected (number)'),
        ("lr: [{value: 1}]", "lr in x.yaml: expected number, got "),
        ("lr_steps: [[3], [0]]", "lr_steps: expected epochs of at least 1"),
        ("lr_steps: [[3], 5]", "lr_steps in x.yaml: expected [integer, ...]"),
    ],
)
def test_a_grid_is_refused_before_anything_runs(text: str, expected: str) -> None:
    Path("x.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        parse_grid(["-c", "x.yaml", "--momentum", "0.1", "0.2"])
    assert str(caught.value).startswith(expected)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ffn_hidden_dim", "0"),
        ("ffn_num_layers", "0"),
        ("batch_size", "0"),
        ("image_size", "0"),
        ("val_split", "1"),
        ("val_split", "-0.1"),
        ("lr", "0"),
        ("lr", ".nan"),
        ("lr", ".inf"),
        ("lr_steps", "[0]"),
        ("momentum", "1"),
        ("weight_decay", "-1"),
        ("dropout_prob", "1"),
        ("label_noise", "1.5"),
        ("label_smoothing", "1"),
        ("max_epochs", "0"),
        ("max_epochs", "-2"),
        ("max_steps", "0"),
        ("accumulate_grad_batches", "0"),
        ("gradient_clip_val", "-1"),
        ("limit_val_batches", "1.5"),
        ("seed", "-1"),
        ("d", "-1"),
        ("d", "0"),
    ],
)
def test_ranges(key: str, value: str) -> None:
    assert refusal(None, f"--{key}={value}").startswith(f"{key}: expected ")


@pytest.mark.parametrize(
    "setting", ["val_split=0", "label_noise=1", "weight_decay=0", "max_epochs=-1", "ffn_hidden_dim=1"]
)
def test_the_ends_of_ranges(setting: str) -> None:
    parse_args([f"--{setting}"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr: 1\n\tmodel: ffn", "line 2"),
        ("lr: 1\nmodel: a: b", "line 2"),
        ("lr: 'unfinished", "is not valid YAML"),
        (b"lr: \xff", "is not valid YAML"),
        ("lr: 1\n---\nlr: 2", "expected a single document"),
        ("lr: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("- lr", 'expected lines of the form "key: value"'),
        ("lr", 'expected lines of the form "key: value"'),
        ("lr: 1\nlr: 2", 'key "lr" in x.yaml is given again at line 2'),
        (
            "ckpt_every_n_epoch: 1\nckpt_every_n_epochs: 2",
            'key "ckpt_every_n_epochs" in x.yaml is given again',
        ),
        ("lr:\n  value: 1", 'key "lr" in x.yaml holds nested keys'),
        ("trainer:\n  max_epochs: 1", 'key "trainer" in x.yaml holds nested keys'),
    ],
)
def test_broken_files(text: str | bytes, expected: str) -> None:
    message = refusal(text)
    assert "x.yaml" in message
    assert expected in message


def test_files_that_cannot_be_read() -> None:
    assert refusal(None, "-c", "no.yaml") == "cannot read configuration file no.yaml: No such file or directory"
    assert "Is a directory" in refusal(None, "-c", ".")


def test_words_out_of_place() -> None:
    assert refusal(None, "x.yaml").startswith('"x.yaml" on the command line has no key')
    assert refusal(None, "-c") == "-c on the command line: expected a YAML file, got nothing"
    assert refusal(None, "--lr") == "lr on the command line: expected number, got nothing"
    assert refusal(None, "-lr", "1") == 'unknown key "-lr" on the command line: did you mean "lr"?'


def test_an_experiments_own_group() -> None:
    assert parse_args([], Shape).d == "auto"
    assert parse_args(["--d", "0.5", "--sides", "4"], Shape).d == 0.5
    assert refusal(None, "--d", "wide").endswith('expected number or auto, got "wide"')
    assert refusal(None, "--sides", "13") == "sides: 13 is unlucky"
    assert "unknown key" in refusal("d: 3")


def test_round_trip() -> None:
    argv = ["--lr", "1e-5", "--lr_steps", "3", "--devices", "0", "1", "--weights", "1e-4", "--d", "2"]
    args = parse_args([*argv, "--max_time", "12:00:00", "--precision", "16", "--wandb_project", "null"], Shape)
    Path("x.yaml").write_text(yaml.safe_dump(config_dict(args)))
    again = parse_args(["-c", "x.yaml"], Shape)
    assert {key: value for key, value in vars(again).items() if key not in PATHS} == {
        key: value for key, value in vars(args).items() if key not in PATHS
    }
    assert config_dict(again) == config_dict(args)


def test_paths_mean_the_same_in_any_working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    args = parse_args(["--weights", "../w.pt", "--data_dir", "d", "--arrays_path", "/a/b.npz"])
    Path("sub").mkdir()
    Path("sub/x.yaml").write_text(yaml.safe_dump(config_dict(args)))
    monkeypatch.chdir("sub")
    again = parse_args(["-c", "x.yaml"])
    assert (again.weights, again.data_dir) == (str(tmp_path.parent / "w.pt"), str(tmp_path / "d"))
    assert (again.arrays_path, parse_args(["--weights", ""]).weights) == ("/a/b.npz", "")


def test_home_in_every_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("x.yaml").write_text("data_dir: ~/data\nseed: 3\n")
    words = ["-c", "~/x.yaml", "--out_dir=~/out", "--wandb_dir", "~/w", "--weights", "~/w.pt", "--arrays_path=~/a.npz"]
    args = parse_args(words)
    found = (args.data_dir, args.out_dir, args.wandb_dir, args.weights, args.arrays_path)
    assert found == tuple(str(tmp_path / name) for name in ("data", "out", "w", "w.pt", "a.npz"))
    assert read_settings(["--runs", "~/a", "b", "~"], Folders).runs == [str(tmp_path / "a"), "b", str(tmp_path)]


@dataclass(frozen=True)
class Folders:
    """Folders: some.

    Attributes:
        runs: Folders of runs.
    """

    runs: list[str] = field(default_factory=list)


def test_a_script_without_use_for_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    strict = Script(unused=frozenset({"lr", "momentum"}), why="it trains nothing", notes="Said at the end.")
    with pytest.raises(UserError, match=r"^lr on the command line: this script does not use it: it trains nothing"):
        parse_args(["--lr", "3"], script=strict)
    # One file serves several scripts.
    Path("x.yaml").write_text("lr: 3\nseed: 4\n")
    assert parse_args(["-c", "x.yaml"], script=strict).seed == 4
    assert not capsys.readouterr().out
    tolerant = Script(unused=strict.unused, why=strict.why, tolerant=True)
    assert parse_args(["--momentum", "0.1", "--lr", "3", "--seed", "5"], script=tolerant).seed == 5
    said = capsys.readouterr().out
    assert said == "ignored: momentum, lr, which this script does not use: it trains nothing\n"
    with pytest.raises(SystemExit):
        parse_args(["--help"], script=strict)
    shown = capsys.readouterr().out
    assert "--seed" in shown and "--lr " not in shown and "--momentum" not in shown and "Said at the end." in shown


def test_help_and_refusals_list_the_choices(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        parse_args(["--help"])
    shown = capsys.readouterr().out
    for names in (DATAMODULES, MODELS, ACTIVATIONS, ("loss", "acc_by_class"), ("ddp", "fsdp"), ("cpu", "cuda", "mps")):
        assert all(re.search(rf"\b{name}\b", shown) for name in names)
    assert refusal(None, "--strategy", "dpp").endswith('got "dpp"; did you mean "ddp"?')
    assert "expected auto or gpu or cpu or cuda" in refusal(None, "--accelerator", "cup")


def test_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        parse_args(["-c", "no.yaml", "--help"], Shape)
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    titles = [line.partition(":")[0] for line in shown.splitlines() if line.endswith(":") and line[0] != " "]
    assert titles == ["options", "Data", "Network", "Optimization", "Run", "Shape", "Trainer"]
    assert max(map(len, shown.splitlines())) <= 100
    for key in vars(parse_args([], Shape)):
        assert f"  --{key} " in shown
    assert "--optimizer adam|adamw|sgd      Name of the optimizer (default: sgd)" in shown
    assert "Scale of the shape (default: auto)" in shown


def test_every_key_has_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        parse_args(["--help"])
    keys = [key.partition("\n\n")[0] for key in capsys.readouterr().out.split("\n  --")[1:]]
    assert len(keys) == len(vars(parse_args([])))
    assert all(re.search(r"\s\s\w+ \w+", key) for key in keys)


def test_trainer_flags() -> None:
    set_by_main = {"callbacks", "default_root_dir", "enable_checkpointing", "logger", "plugins"}
    keywords = trainer_kwargs(parse_args(["--accelerator", "cpu", "--max_epochs", "3", "--limit_val_batches", "2"]))
    assert set(keywords) == set(inspect.signature(Trainer).parameters) - set_by_main
    trainer = Trainer(**keywords, logger=False, enable_checkpointing=False)
    assert (trainer.max_epochs, trainer.limit_val_batches) == (3, 2)


def test_trainer_flags_are_read_as_lightning_has_them() -> None:
    """They come from its source, so that help need not import it; what its annotations leave open is listed here."""
    real, read = inspect.signature(Trainer).parameters, inspect.signature(settings._trainer()).parameters
    assert [*real] == [*read][1:] and all(real[name].default == read[name].default for name in real)
    keys = {item.name: item.type for item in fields(settings.TrainerFlags)}
    for name, hint in get_type_hints(Trainer.__init__).items():
        if name in keys and name not in ("accelerator", "gradient_clip_algorithm", "profiler"):
            assert set(choices(keys[name])) == set(choices(settings._plain(hint))), name
    assert {"auto", "gpu", *AcceleratorRegistry.available_accelerators()} == set(choices(keys["accelerator"]))


@pytest.mark.parametrize("source", [None, "class Other: ...", "def broken("])
def test_a_trainer_that_stands_elsewhere_is_imported(monkeypatch, tmp_path, source) -> None:
    """As in a Lightning with other files."""
    if source is not None:
        (tmp_path / "trainer").mkdir()
        (tmp_path / "trainer" / "trainer.py").write_text(source)
    monkeypatch.setattr(settings, "find_spec", lambda _: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    assert settings._trainer() is Trainer.__init__


def choices(hint: Any) -> list[Any]:
    """Types and values that a hint allows."""
    members = settings.union_members(hint)
    return [value for m in members for value in (get_args(m) if get_origin(m) is Literal else [m])]
