"""From a configuration to a certificate: train, code, search, and leave the files."""

import math
import re
import time
from argparse import Namespace
from collections.abc import Mapping
from copy import copy
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from milkshake_mbp.callbacks.certificate import Certificate
from milkshake_mbp.codec import code_bits, decode, encode, from_file_bytes, to_file_bytes
from milkshake_mbp.errors import UserError
from milkshake_mbp.experiment.certificate.coding import CodingCallback
from milkshake_mbp.experiment.certificate.figures import draw_certificate
from milkshake_mbp.experiment.certificate.files import CertificateFiles
from milkshake_mbp.experiment.certificate.judge import Judge, certified, count_distinct, training_pixels
from milkshake_mbp.experiment.certificate.ladder import certificate_ladder
from milkshake_mbp.experiment.certificate.model import CodedNet, input_map
from milkshake_mbp.experiment.certificate.report import write_certificate_report
from milkshake_mbp.experiment.certificate.search import Search
from milkshake_mbp.experiment.certificate.show import premises
from milkshake_mbp.experiment.certificate.teacher import taught
from milkshake_mbp.files import write_atomically, write_csv
from milkshake_mbp.framework.datamodules import DataModule, load_datamodule
from milkshake_mbp.framework.logging import wandb_logger
from milkshake_mbp.reporting.words import at_most
from milkshake_mbp.runs.files import read_state, write_state
from milkshake_mbp.runs.job import Job
from milkshake_mbp.runs.names import run_name

__all__ = ["make_certificate", "pixels_datamodule", "run_folder"]


def make_certificate(args: Namespace, console: Console) -> tuple[CertificateFiles, dict[str, Any]]:
    """Train, code and search as the configuration says, and leave the result files.

    A finished one is read; an interrupted one continues from the last checkpoint, or from the last round of the search.

    Args:
        args: the configuration, with the keys of `Certifying`.
        console: where to say what happens.

    Returns:
        The files, and the content of result.json.

    Raises:
        UserError: a key, a file or the data are not as they must be.
        KeyboardInterrupt: the user interrupted; certificate.mbp holds the best network so far.
    """
    files = CertificateFiles(Path(args.out_dir) / run_folder(args))
    job = Job(
        args,
        files,
        (files.certificate,),
        partial(_derive, files),
        console,
        partial(_close_wandb, files) if args.wandb else None,
        (files.certificate, files.search, files.rounds),
    )
    return files, job.do(
        lambda: _certificate(job, files, console), lambda finished: finished | _counted_again(files, args)
    )


def _certificate(job: Job, files: CertificateFiles, console: Console) -> dict[str, Any]:
    """Train, code and search; the content of result.json."""
    console.print(f"{files.folder.name}: results go to {files.folder}")
    started = time.monotonic()
    args = copy(job.args)
    datamodule = pixels_datamodule(args)
    state = read_state(files.search, console)
    # Where a folder is removed in mid-search, what is written afterwards lacks the record of the training.
    if state and not state.get("epochs"):
        state = None
    data = datamodule.dataset_train.data
    shape = tuple(data.shape[1:])
    derived = {
        "sample_shape": shape if len(shape) == 3 else (1, 1, math.prod(shape)),
        "num_samples": len(data),
        "brightest": max(1, int(data.max())),
        "no_test": True,
        "run_name": files.folder.name,
        "run_group": args.experiment,
    }
    if args.wandb:
        derived["run_id"] = files.wandb_id(given=not args.rerun)
    vars(args).update(derived)
    judge = Judge.of(input_map(args), datamodule.dataset_train, args.delta)
    trained = judge.again(state["trained"]) if state else _train(job, derived, files, datamodule, judge, console)
    if args.wandb:
        _open_wandb(args)
    try:
        best = _search(args, files, trained, judge, console, state)
    except KeyboardInterrupt as stopped:
        raise KeyboardInterrupt(
            f"{files.certificate} has the best network so far, and the same command continues from there"
        ) from stopped
    write_atomically(files.certificate, to_file_bytes(best.code))
    return _summary(args, files, trained, best, datamodule) | {"seconds": round(time.monotonic() - started, 1)}


def _derive(files: CertificateFiles, result: dict[str, Any]) -> None:
    """Figures and page, functions of the files that are there."""
    draw_certificate(files)
    write_certificate_report(files, result)


def _open_wandb(args: Namespace) -> None:
    """What training has opened, unless it was over in an earlier process, takes the search too."""
    import wandb

    run = wandb.run or wandb_logger(args).experiment
    run.define_metric("search/*", step_metric="search/round")


def _close_wandb(files: CertificateFiles, result: Mapping[str, Any]) -> None:
    from milkshake_mbp.reporting.dashboard import close_run

    kept = [files.certificate, files.report, files.result, files.config, files.epochs, files.rounds]
    close_run(result, files.folder.name, files.folder, [*kept, *files.figures.glob("*.*")])


def pixels_datamodule(args: Namespace) -> DataModule:
    """The datamodule, set up to give stored pixels as they are.

    Raises:
        UserError: its samples are no pixels; or they would be changed on the way, so that their map would have to be
            part of the code.
    """
    if args.image_size is not None or args.input_channels is not None:
        raise UserError(
            "image_size and input_channels change the pixels before the network sees them: use crop, pool, "
            "stride and grey, which are part of the code"
        )
    if args.label_noise:
        raise UserError(
            f"label_noise: expected 0, got {args.label_noise}: a certificate would bound only the error on equally "
            "noisy labels"
        )
    datamodule = load_datamodule(args.datamodule)(args)
    datamodule.scale, datamodule.shift = 1.0, 0.0
    datamodule.prepare_data()
    datamodule.setup("fit")
    if datamodule.dataset_train.data.is_floating_point():
        raise UserError(
            f"datamodule: expected inputs that are integers from 0 to 255, but {args.datamodule} has real inputs: use "
            "CertificateCallback, which certifies networks on any inputs"
        )
    return datamodule


def run_folder(args: Namespace) -> str:
    """The name of a certificate's folder: no more than a name, whatever the keys are."""
    kind = "-".join([*(node.replace(" ", ".") for node in args.nodes), *map(str, args.hidden)]) or "linear"
    return re.sub(r"[^\w.-]", ".", f"certificate-{args.datamodule}-{kind}-seed{args.seed}-{run_name(args)[-8:]}")


def _train(
    job: Job,
    derived: Mapping[str, Any],
    files: CertificateFiles,
    datamodule: DataModule,
    judge: Judge,
    console: Console,
) -> Certificate:
    args = job.inside(**derived)
    probabilities = None
    if args.teacher:
        probabilities, error = taught(args.teacher, args)
        console.print(f"teacher {args.teacher}: {error:.3%} training error", markup=False)
    callback = CodingCallback(judge, args.code_every_n_epochs, files.certificate)
    job.train(args, CodedNet, judge.datamodule(datamodule, probabilities), [callback])
    assert callback.best is not None
    return callback.best


def _search(
    args: Namespace,
    files: CertificateFiles,
    trained: Certificate,
    judge: Judge,
    console: Console,
    state: dict[str, Any] | None,
) -> Certificate:
    """The best network of a walk that starts at the trained one; what is found is written after every round."""
    if state is None:
        code = trained.code.hex()
        epochs = files.epochs.read_bytes().decode() if files.epochs.exists() else ""
        state = {"trained": code, "best": code, "now": code, "rows": [], "epochs": epochs}
    else:  # the tables have no check sum before all is finished
        write_atomically(files.epochs, state["epochs"].encode())
        write_csv(files.rounds, state["rows"])
    best, rows = judge.again(state["best"]), state["rows"]
    if len(rows) >= args.search_rounds:
        return best
    now = decode(bytes.fromhex(state["now"]))[0]
    search = Search(now, judge.seen, judge.targets, args.delta, args.levels, args.seed)
    with _progress(console) as progress:
        task = progress.add_task("search", total=args.search_rounds, completed=len(rows), said="")
        for found in search.rounds(args.search_steps, args.search_heat, len(rows), args.search_rounds):
            made = judge(judge.tidy(found.network))
            if made.bound < best.bound:
                best = made
                write_atomically(files.certificate, to_file_bytes(best.code))
            rows.append(
                {
                    "round": len(rows) + 1,
                    "bound": made.bound,
                    "bits": made.bits,
                    "error": made.error,
                    "best_bound": best.bound,
                }
            )
            state |= {"best": best.code.hex(), "now": encode(found.network).hex(), "rows": rows}
            write_state(files.search, state)
            write_csv(files.rounds, rows)
            if args.wandb:
                _log_round(rows[-1])
            progress.update(
                task,
                advance=1,
                said=f"bound {at_most(made.bound)}, best {at_most(best.bound)}, {made.bits:,} bits, "
                f"error {made.error:.2%}",
            )
            if not console.is_terminal:
                console.print(f"round {len(rows)}/{args.search_rounds}  {progress.tasks[0].fields['said']}")
    return best


def _log_round(row: Mapping[str, Any]) -> None:
    import wandb

    if wandb.run is not None:
        wandb.run.log({f"search/{key}": value for key, value in row.items()})


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("[bold]{task.description} {task.completed}/{task.total}"),
        BarColumn(bar_width=20),
        TimeRemainingColumn(),
        TextColumn("left  {task.fields[said]}"),
        console=console,
        disable=not console.is_terminal,
    )


def _summary(
    args: Namespace, files: CertificateFiles, trained: Certificate, best: Certificate, datamodule: DataModule
) -> dict[str, Any]:
    """The content of result.json: errors and bounds are probabilities."""
    read, length = from_file_bytes(files.certificate.read_bytes())
    if read != best.network or length != len(best.code):
        raise UserError(f"{files.certificate} has changed since it was written: delete it and rerun")
    datamodule.setup("test")
    test = datamodule.dataset_test
    return {
        "run": files.folder.name,
        "seed": args.seed,
        **_counted(best, count_distinct(datamodule.dataset_train), args.datamodule),
        "certified_test_error": best.network.errors(test.data, test.targets) / len(test),
        "before_search": {"bound": trained.bound, "code_bits": trained.bits, "train_error": trained.error},
        "widths": list(best.network.widths),
        "shapes": [list(layer.values.shape) for layer in best.network.layers],
        "grids": [list(grid) for grid in best.network.grids],
        "nonzeros": [layer.nonzeros for layer in best.network.layers],
        "inputs": asdict(best.network.inputs),
        "exact": best.network.exact,
        "parts": code_bits(best.network),
        **certificate_ladder(best, datamodule),
    }


def _counted(made: Certificate, distinct: int, data: str) -> dict[str, Any]:
    """What follows from the bytes and the samples."""
    return {
        "delta": made.delta,
        "bound": made.bound,
        "code_bits": made.bits,
        "train_error": made.error,
        "train_errors": made.errors,
        "n": made.num_samples,
        "distinct": distinct,
        "premises": premises(made.network.inputs, made.num_samples, distinct, data),
    }


def _counted_again(files: CertificateFiles, args: Namespace) -> dict[str, Any]:
    """`_counted` of a finished certificate, from its file and the data: its result.json may have been changed."""
    made, distinct = certified(files.certificate, training_pixels(args), args.datamodule, args.delta)
    return _counted(made, distinct, args.datamodule)
