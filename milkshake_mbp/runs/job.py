"""A computation with a folder of its own: shown if it is finished, else done, or gone on with, under a lock."""

import json
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import copy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from milkshake_mbp.framework.args import config_dict
from milkshake_mbp.framework.console import first_process
from milkshake_mbp.runs.checkpoints import last_checkpoint, unsealed
from milkshake_mbp.runs.files import RunFiles, complete, finished_result
from milkshake_mbp.runs.lock import locked

if TYPE_CHECKING:
    from pytorch_lightning import Callback

    from milkshake_mbp.framework.datamodules import DataModule
    from milkshake_mbp.framework.models import Model

__all__ = ["Job"]

Result = dict[str, Any]


class Job:
    """A run, a certificate, or a training of a lottery.

    Args:
        args: the configuration.
        files: its folder.
        needed: files without which it is done again, beside result.json.
        derive: makes of its numbers what follows from them and the files that are there: figures, tables, page.
        console: where to say what happens.
        publish: what is done with new numbers when all is written, such as sending them to a dashboard.
        remade: files that `rerun` removes beforehand, beside result.json.
        part: whether it is one of many, so that it goes without saying that it is finished.
    """

    def __init__(
        self,
        args: Namespace,
        files: RunFiles,
        needed: tuple[Path, ...],
        derive: Callable[[Result], object],
        console: Console,
        publish: Callable[[Result], object] | None = None,
        remade: tuple[Path, ...] = (),
        part: bool = False,
    ) -> None:
        self.args, self.files, self.console = args, files, console
        self._needed, self._remade = needed, (files.result, *remade)
        self._derive, self._publish, self._part = derive, publish, part

    def do(self, compute: Callable[[], Result], check: Callable[[Result], Result] = lambda result: result) -> Result:
        """The content of result.json: read, or computed and written, and after it the manifest that seals the folder.

        Args:
            compute: makes the numbers, and leaves in the folder what they come from.
            check: of the numbers of a finished job, makes those to show, or refuses to.

        Raises:
            BusyError: another process does it; a UserError.
            UserError, KeyboardInterrupt: as `compute` and `check` raise them.
        """
        finished = self._finished(self.console)
        if finished is None:
            # The first process of a distributed run stands for the others.
            with locked(self.files.folder) if first_process() else nullcontext():
                finished = self._finished(Console(quiet=True))  # meanwhile, by another
                if finished is None:
                    return self._compute(compute)
        if not self._part:
            self.console.print(f"{self.files.folder} is finished: showing its results (--rerun True makes it again)")
        finished = check(finished)
        if first_process() and self.files.altered() != {}:
            with locked(self.files.folder):
                complete(self.files, self.console, config_dict(self.args), partial(self._derive, finished))
        return finished

    def _finished(self, console: Console) -> Result | None:
        """The numbers of a job that is complete and sound."""
        if self.args.rerun or unsealed(self.files):
            return None
        return finished_result(self.files, console, *(path.name for path in self._needed))

    def _compute(self, compute: Callable[[], Result]) -> Result:
        self.files.manifest.unlink(missing_ok=True)
        if self.args.rerun:
            for path in self._remade:
                path.unlink(missing_ok=True)
        self.files.write_config(config_dict(self.args))
        result = json.loads(json.dumps(compute()))  # as it will be read back: lists for tuples
        if first_process():
            self.files.write_result(result)
            self._derive(result)
            self.files.seal()
            if self._publish is not None:
                self._publish(result)
        return result

    def inside(self, **keys: object) -> Namespace:
        """The configuration to train with: in the job's folder, from its last checkpoint if it was interrupted.

        Args:
            **keys: what else is set, such as its name on a dashboard.
        """
        args = copy(self.args)
        args.out_dir = str(self.files.folder)
        vars(args).update(keys)
        begins = args.rerun or args.eval_only or args.resume_training
        if not begins and (checkpoint := last_checkpoint(self.files)):
            self.console.print(f"{self.files.folder} was interrupted: continuing from its last checkpoint")
            args.resume_training, args.weights = True, checkpoint
        return args

    def train(
        self,
        args: Namespace,
        model: "Model | type[Model]",
        datamodule: "DataModule",
        callbacks: "Sequence[Callback]",
        hooks: "Sequence[Callable[[Model], Any]]" = (),
    ) -> "Model":
        """The model that `framework.main.main` trains.

        Raises:
            KeyboardInterrupt: the user interrupted.
        """
        from milkshake_mbp.framework.main import main  # loads Lightning, which what is finished does without

        try:
            return main(args, model, datamodule, callbacks, hooks, verbose=False)[0]
        except SystemExit as stopped:  # what Lightning makes of Ctrl-C, once it has shut down
            raise KeyboardInterrupt(
                f"{self.files.folder} has the results so far, and the same command continues from there"
            ) from stopped
