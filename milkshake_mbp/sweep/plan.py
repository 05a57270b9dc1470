"""The grid that lists of values span: its trials, its name, and what runs it."""

import hashlib
import json
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from milkshake_mbp.errors import UserError
from milkshake_mbp.experiment.run import MakeExperiment, main_experiment
from milkshake_mbp.framework.args import Grid
from milkshake_mbp.framework.datamodules import DATAMODULES, load_datamodule
from milkshake_mbp.framework.models import MODELS, load_model
from milkshake_mbp.framework.settings import keys_of
from milkshake_mbp.runs.names import file_name, shown
from milkshake_mbp.runs.settings import Shown, Sweep
from milkshake_mbp.sweep.trials import Trial

__all__ = ["Plan", "plan_sweep"]


@dataclass(frozen=True)
class Plan:
    """A grid, and how it is to be run.

    Attributes:
        name: the sweep's, a function of its trials and the experiment's name.
        axes: the values of every key that was given several.
        trials: one for every combination, the last axis varying fastest.
        how: the keys that say what runs them.
    """

    name: str
    axes: Mapping[str, Sequence[Any]]
    trials: Sequence[Trial]
    how: Sweep

    @property
    def folder(self) -> Path:
        """Where the sweep's tables go, beside the runs' folders."""
        return Path(self.trials[0].args.out_dir) / self.name

    @property
    def single(self) -> bool:
        """Whether this is one run, to be done in this process."""
        return not self.axes and self.how.engine == "local"

    def table(self) -> Table:
        """The axes and their values."""
        size = " × ".join(str(len(values)) for values in self.axes.values()) or "1"
        total = f"{size} = {len(self.trials)}" if len(self.axes) > 1 else size
        table = Table(
            title=f"{self.name}: {total} trials",
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            show_header=False,
        )
        for key, values in self.axes.items():
            table.add_row(key, Text(", ".join(map(shown, values))))
        return table


def plan_sweep(grid: Grid, make: MakeExperiment | None = None) -> Plan:
    """Turn a grid, read with the keys of `runs.settings.Sweep` among others, into trials.

    Args:
        grid: their configurations.
        make: the experiment of a configuration, a function of a script; by default that of exps/mbp.py.

    Raises:
        UserError: a model, dataset or file is not there, two trials would be the same run, or a trial needs
            devices that the engine cannot give it.
    """
    how = Sweep(**{key: getattr(grid.trials[0], key) for key in keys_of(Sweep)})
    for args in grid.trials:
        if args.weights and not Path(args.weights).exists():
            raise UserError(f"weights: {args.weights} does not exist")
    _check_classes(args for args in grid.trials if args.model not in MODELS or args.datamodule not in DATAMODULES)
    trials = []
    for args in grid.trials:
        own = {key: value for key, value in vars(args).items() if key not in keys_of(Sweep, Shown)}
        trials.append(
            Trial(Namespace(**own), {axis: getattr(args, axis) for axis in grid.axes}, make or main_experiment())
        )
    # What is finished is shown without Lightning, which these load.
    _check_classes(trial.args for trial in trials if not trial.files.result.exists())
    for axis, values in grid.axes.items():
        first = trials[0].values
        others = [trial for trial in trials if all(trial.values[key] == first[key] for key in first if key != axis)]
        if len({trial.name for trial in others}) < len(values):
            raise UserError(f"{axis}: expected one value, got {shown(values)}: it changes no result and is not an axis")
    names = sorted(trial.name for trial in trials)
    digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:8]
    plan = Plan(file_name(f"{trials[0].args.experiment}-sweep-{digest}"), grid.axes, trials, how)
    if not plan.single:
        for trial in trials:
            _check_devices(trial, how)
    return plan


def _check_classes(configurations: Iterable[Namespace]) -> None:
    for args in configurations:
        load_model(args.model)
        load_datamodule(args.datamodule)


def _check_devices(trial: Trial, how: Sweep) -> None:
    if trial.args.num_nodes != 1:
        raise UserError(
            f"num_nodes: a sweep gives each trial 1 node, got {trial.args.num_nodes}: run that configuration by itself"
        )
    if how.engine == "ray" and trial.processes != 1:
        raise UserError(
            f"devices: engine ray gives each trial 1 device, got {trial.args.devices}: "
            "use --engine local, or run that configuration by itself"
        )
