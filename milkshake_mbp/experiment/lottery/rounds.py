"""Rounds of pruning and rewinding, and their controls, each a training with a folder of its own."""

import gc
import math
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities.seed import isolate_rng
from rich.console import Console
from torch import Tensor, nn
from torch.func import functional_call

from milkshake_mbp.callbacks import RewindCallback, SketchCallback
from milkshake_mbp.callbacks.data import test_samples, train_samples
from milkshake_mbp.callbacks.rewind import training_state
from milkshake_mbp.errors import UserError
from milkshake_mbp.experiment.lottery.settings import Strong
from milkshake_mbp.files import write_csv
from milkshake_mbp.framework.checkpoints import read_weights
from milkshake_mbp.framework.datamodules import load_datamodule
from milkshake_mbp.framework.datamodules.datamodule import DataModule
from milkshake_mbp.framework.models import Model, load_model
from milkshake_mbp.reading import Reading, Samples, measure, measure_outputs, registered_kernels
from milkshake_mbp.reading.measure import read_samples
from milkshake_mbp.reporting.terminal import Fitted
from milkshake_mbp.runs.files import RunFiles, write_tensors
from milkshake_mbp.runs.job import Job
from milkshake_mbp.runs.names import run_name
from milkshake_mbp.runs.summary import ladder_numbers
from milkshake_mbp.theory.layer_sketch import predicted_spread
from milkshake_mbp.theory.lottery import active_units, broken_hypotheses, shuffled_masks, ticket_bound
from milkshake_mbp.theory.norms import spectral_norm
from milkshake_mbp.theory.perturbation import default_step, discretize

__all__ = [
    "TICKET",
    "Branch",
    "check_keys",
    "crowding",
    "export_rounds",
    "finished_rounds",
    "lottery_folder",
    "rounds_table",
    "run_rounds",
    "summarize_rounds",
    "train",
]

TICKET = "ticket"
# Of another initialization; away from the seeds that people choose.
_OTHER_INITIALIZATION = 7_919_000_003


@dataclass(frozen=True)
class Branch:
    """One training's place in the experiment.

    Attributes:
        seed: of the repetition.
        name: "ticket", or the control.
        round: 0 for the dense network.
        folder: of its result files.
    """

    seed: int
    name: str
    round: int
    folder: Path

    @property
    def files(self) -> RunFiles:
        """The training's files."""
        return RunFiles(self.folder)

    @property
    def rewind(self) -> Path:
        """The weights that survivors are set back to; beside the dense network."""
        return self.folder / "rewind.safetensors"


def lottery_folder(args: Namespace) -> Path:
    """Where an experiment's results are: a function of what affects them, so that more rounds or seeds join the old."""
    extending = {"rounds", "seeds", "seed", "controls", "control_rounds", "sketch_rounds", *vars(Strong())}
    kept = {key: value for key, value in vars(args).items() if key not in extending}
    return Path(args.out_dir) / f"lottery-{run_name(Namespace(**kept, seed=0)).replace('-seed0', '')}"


def run_rounds(args: Namespace, console: Console) -> list[dict[str, Any]]:
    """Train every round and control that is not there yet, in the order in which they build on one another.

    A finished one is read, and an interrupted one continues from its last checkpoint.

    Args:
        args: the configuration, with the keys of `Lottery`.
        console: where to say what happens.

    Returns:
        Every training's result.json.

    Raises:
        UserError: a key, a file or a training is not as it must be.
        KeyboardInterrupt: the user interrupted; the same command continues from there.
    """
    check_keys(args)
    results = []
    for seed in args.seeds or [args.seed]:
        given = copy(args)
        given.seed = seed
        folder = lottery_folder(args) / f"seed-{seed}"
        datamodule = load_datamodule(args.datamodule)(given)
        for branch in _branches(args, seed, folder):
            results.append(train(given, branch, datamodule, _start(branch, folder, datamodule), console))
            # Lightning's trainer and model refer to each other, and would be held until Python next looks for cycles.
            gc.collect()
            _say(results[-1], console)
    return results


def finished_rounds(folder: Path) -> list[dict[str, Any]]:
    """Every result.json in the folder of an experiment, as `run_rounds` gives them; none if it holds no lottery."""
    found = [RunFiles(path.parent).read_result() for path in folder.glob("seed-*/*/result.json")]
    known = [result for result in found if result is not None]
    return sorted(
        known, key=lambda result: (result["seed"], result["round"], result["branch"] != TICKET, result["branch"])
    )


def check_keys(args: Namespace) -> None:
    """Refuse keys of the framework that make no sense here.

    Raises:
        UserError: one of them is set.
    """
    if args.no_test:
        raise UserError("no_test: tickets are compared by their test error; leave the key out")
    if args.weights or args.eval_only or args.resume_training:
        raise UserError("weights, eval_only, resume_training: the lottery starts from new weights; leave them out")
    if str(args.devices) != "1":
        raise UserError(f"devices: the lottery trains on one device, got {args.devices}")


def _branches(args: Namespace, seed: int, folder: Path) -> Iterator[Branch]:
    for turn in range(args.rounds + 1):
        yield Branch(seed, TICKET, turn, folder / f"{TICKET}-{turn:02d}")
        if turn in (args.control_rounds or range(1, args.rounds + 1)):
            for control in args.controls:
                yield Branch(seed, control, turn, folder / f"{control}-{turn:02d}")


Start = Callable[[Model, RewindCallback], object]


@dataclass(frozen=True)
class Training:
    """A finished training, still in memory.

    Attributes:
        model: the trained network.
        datamodule: its data.
        rewind: the callback that trained it.
        sketches: whether its layers are to be sketched.
    """

    model: Model
    datamodule: DataModule
    rewind: RewindCallback
    sketches: bool


def _start(branch: Branch, folder: Path, datamodule: DataModule) -> Start | None:
    """What is done to a new model before it is trained; nothing for the dense network."""
    if branch.round == 0:
        return None
    dense = Branch(branch.seed, TICKET, 0, folder / f"{TICKET}-00")

    def start(model: Model, rewind: RewindCallback) -> None:
        weights = _read(dense.rewind)
        if branch.name == TICKET:
            before = RunFiles(folder / f"{TICKET}-{branch.round - 1:02d}")
            rewind.rewind_weights = weights
            rewind.begin(model, branch.round - 1, _read(before.mask), _read(before.model))
            rewind.advance(model)
            return
        masks = _read(RunFiles(folder / f"{TICKET}-{branch.round:02d}").mask)
        if branch.name == "random_mask":
            names = [kernel.parameter for kernel in registered_kernels(model)]
            drawn = shuffled_masks([masks[name] for name in names], branch.seed + 1_000_003 * branch.round)
            masks = dict(zip(names, drawn, strict=True))
        else:
            weights = _other_initialization(model, branch.seed, datamodule)
        rewind.begin(model, branch.round, masks, weights)

    return start


def _read(path: Path) -> dict[str, Tensor]:
    """What an earlier training left."""
    if not path.exists():
        raise UserError(f"{path} was removed during the run: run the command again, which makes it again")
    return read_weights(path)


def _other_initialization(model: Model, seed: int, datamodule: DataModule) -> dict[str, Tensor]:
    with isolate_rng():
        torch.manual_seed(seed + _OTHER_INITIALIZATION)
        other = type(model)(Namespace(**model.hparams))
        if other.has_uninitialized_params():
            other.fit_to(datamodule.dataset_train[0][0])
        return training_state(other)


def train(
    args: Namespace, branch: Branch, datamodule: DataModule, start: Start | None, console: Console
) -> dict[str, Any]:
    """Train one branch and leave its result files, unless they are there.

    Args:
        args: the configuration of this seed.
        branch: its place.
        datamodule: the data of this seed.
        start: see `run_rounds`.
        console: where to say that an interrupted training goes on.

    Returns:
        The content of its result.json.
    """
    files = branch.files
    needed = (files.model, files.mask, branch.rewind)
    job = Job(args, files, needed, lambda result: None, console, partial(_finish, branch, args.wandb), part=True)
    return job.do(lambda: _train_branch(job, branch, datamodule, start))


def _train_branch(job: Job, branch: Branch, datamodule: DataModule, start: Start | None) -> dict[str, Any]:
    """Train, measure and leave weights and masks; the content of result.json."""
    args, files = job.args, branch.files
    inside = job.inside(run_group=args.experiment, run_name=_dashboard_name(branch))
    if not job.console.is_terminal:
        inside.enable_progress_bar = False
    rewind = RewindCallback(
        args.prune_rate,
        args.output_rate,
        args.prune_scope,
        args.pruner,
        args.rewind_steps,
        seed=args.seed,
        keep_diagonal=args.keep_diagonal,
    )
    hooks = [] if inside.resume_training or start is None else [lambda model: start(model, rewind)]
    model = job.train(inside, load_model(args.model), datamodule, [rewind], hooks)
    if not rewind.rewind_weights:
        raise UserError(
            f"rewind_steps: {args.rewind_steps} is more than the number of steps of the dense network's training; "
            "lower it or raise max_epochs"
        )
    result = _measure(args, branch, Training(model, datamodule, rewind, args.sketch_rounds and branch.name == TICKET))
    write_tensors(files.model, training_state(model))
    write_tensors(files.mask, rewind.masks)
    if branch.round == 0:
        write_tensors(branch.rewind, rewind.rewind_weights)
    return result


def _measure(args: Namespace, branch: Branch, training: Training) -> dict[str, Any]:
    """The content of result.json: errors are probabilities, bounds natural logs."""
    model, data, rewind = training.model, training.datamodule, training.rewind
    report = rewind.report(model)
    layers = [
        {
            **asdict(layer),
            "predicted_spread": predicted_spread(layer.shape, layer.kept / (layer.shape[0] * layer.shape[1])),
        }
        for layer in report.layers
    ]
    result: dict[str, Any] = {
        "branch": branch.name,
        "seed": branch.seed,
        "round": branch.round,
        "epochs": args.max_epochs,
        "kept": report.kept,
        "layers": layers,
        "strengths": rewind.strengths,
        "peak_memory_mib": peak_memory(),
    }
    if branch.name != TICKET:
        test = test_samples(data, model)
        assert test is not None
        return result | {"test_error": measure_outputs(model, test, norms=()).error}
    # At d = 0 nothing more is pruned: the ladder is that of the ticket, rounded.
    measured = measure(
        model,
        train_samples(data),
        test_samples(data, model),
        prune_d=0.0,
        failure=args.failure,
        keep_diagonal=False,
        delta=args.delta,
        initial=rewind.rewind_weights,
        stability=False,
    )
    if training.sketches:
        sketches = SketchCallback().measure(model)
        measured = measured.with_sketches(list(sketches.layers.values()))
        result["sketch"] = asdict(sketches)["layers"]
    ladder = ladder_numbers(measured)
    names = ("versions", "n", "num_classes", "input_norm", "margin", "compressed_error", "bounds")
    result |= {name: ladder[name] for name in names}
    result["test_error"] = measured.test_error
    reading = read_samples(model, train_samples(data))
    if reading.chain:  # the theorem is about nothing else
        result["theorem_6_2"] = asdict(_theorem_6_2(training, reading))
    return result


def _theorem_6_2(training: Training, reading: Reading) -> Any:
    """The theorem with the ticket for its own target, idle units cut away: no smaller network is known to be in it."""
    samples = train_samples(training.datamodule)
    masks = [training.rewind.masks[kernel.parameter] for kernel in reading.kernels]
    weights = reading.matrices(training.model)
    rounded = reading.replaced(training.model, [discretize(weight, default_step(weight)) for weight in weights])
    outputs = measure_outputs(training.model, samples, norms=(2,))
    shapes = [weight.shape for weight in weights]
    return ticket_bound(
        outputs.margins,
        width=max([*active_units(masks), 1]),
        input_dim=shapes[0][1],
        depth=len(weights),
        ticket_width=max([rows for rows, _ in shapes[:-1]] or [shapes[0][1]]),
        epsilon=0.0,
        rounding=_output_change(training.model, samples, rounded),
        alphabet=2 * 2**8 + 1,
        broken=broken_hypotheses(
            weights,
            spectral_norms=[float(spectral_norm(weight)) for weight in weights],
            input_norm=outputs.input_norm,
            epsilon=0.0,
            ticket_depth=len(weights),
            bare=[layer for layer, mask in enumerate(masks) if not bool(mask.diagonal().all())],
            random=False,
        ),
    )


@torch.no_grad()
def _output_change(model: nn.Module, samples: Samples, weights: Mapping[str, Tensor]) -> float:
    """The largest ‖f(x) − f̃(x)‖₂ over the samples, f̃ with the weights given by parameter name."""
    model.eval()
    return max(
        float((functional_call(model, dict(weights), (inputs,)) - model(inputs)).norm(dim=1).max())
        for inputs, _ in samples.batches(next(model.parameters()))
    )


def _dashboard_name(branch: Branch) -> str:
    return f"seed{branch.seed}-{branch.folder.name}"


def _finish(branch: Branch, wandb: bool, result: Mapping[str, Any]) -> None:
    """Checkpoints of many rounds would fill the disk, and the next training opens a wandb run of its own."""
    files = branch.files
    shutil.rmtree(files.folder / "checkpoints", ignore_errors=True)
    if wandb:
        from milkshake_mbp.reporting.dashboard import close_run

        kept = [files.result, files.config, files.epochs, files.mask]
        close_run(result, _dashboard_name(branch), files.folder, kept)


def peak_memory() -> float | None:
    """The process's largest resident size so far, in MiB; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    # Kilobytes, but bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _say(result: Mapping[str, Any], console: Console) -> None:
    console.print(
        f"seed {result['seed']}, {result['branch']}, round {result['round']}: {result['kept']:.2%} of the weights, "
        f"test error {result['test_error']:.2%}"
    )


def export_rounds(results: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write rounds.csv, a row for every training."""
    rows = []
    for result in results:
        bounds = {f"{bound['convention']}/{bound['name']}": bound["log_value"] for bound in result.get("bounds", ())}
        if "theorem_6_2" in result:
            bounds["leading/theorem_6_2_measured"] = result["theorem_6_2"]["log_value"]
        keys = ("seed", "branch", "round", "kept", "test_error", "margin", "peak_memory_mib")
        layers = {
            f"{layer['name']}/{key}": layer[key]
            for layer in result["layers"]
            for key in ("kept", "column_max", "row_max", "predicted_spread")
        }
        rows.append({key: result.get(key, "") for key in keys} | layers | bounds)
    return write_csv(folder / "rounds.csv", rows)


def summarize_rounds(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line per round with means over the seeds.

    Returns:
        round, kept, seeds and, for every branch that was trained, its mean test error.
    """
    lines = []
    for turn in sorted({result["round"] for result in results}):
        there = [result for result in results if result["round"] == turn]
        branches = dict.fromkeys(result["branch"] for result in there)
        tickets = [result for result in there if result["branch"] == TICKET]
        lines.append(
            {
                "round": turn,
                "kept": sum(result["kept"] for result in tickets) / len(tickets),
                "seeds": len(tickets),
                "test_error": {branch: _mean(there, branch) for branch in branches},
            }
        )
    return lines


def _mean(results: Sequence[Mapping[str, Any]], branch: str) -> float:
    errors = [result["test_error"] for result in results if result["branch"] == branch]
    return sum(errors) / len(errors)


def rounds_table(lines: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]]) -> Fitted:
    """The rounds for people: errors in percent, in points against the dense network, and what sketches made of them."""
    branches = list(dict.fromkeys(branch for line in lines for branch in line["test_error"]))
    heads = ["round", "left", *(branch.replace("_", " ") for branch in branches), "over dense", "j / 3χp", "sketched"]
    dense = lines[0]["test_error"][TICKET]
    rows = []
    for line in lines:
        errors = line["test_error"]
        tickets = [r for r in results if r["round"] == line["round"] and r["branch"] == TICKET]
        sketches = [layer["certified"] for result in tickets for layer in result.get("sketch", {}).values()]
        rows.append(
            [
                str(line["round"]),
                f"{line['kept']:.2%}",
                *(f"{100 * errors[branch]:.2f}" if branch in errors else "" for branch in branches),
                f"{100 * (errors[TICKET] - dense):+.2f}",
                f"{max((crowding(layer) for r in tickets for layer in r['layers'] if layer['kept']), default=0.0):.2f}",
                f"{sum(sketches)} of {len(sketches)}" if sketches else "",
            ]
        )
    seeds = lines[0]["seeds"]
    title = f"Test error in %{f', mean over {seeds} seeds' if seeds > 1 else ''}"
    spare = ["sketched", "j / 3χp", "over dense"]
    return Fitted(heads, rows, heads, spare=spare, title=title, elsewhere="report.html has all columns")


def crowding(layer: Mapping[str, Any]) -> float:
    """A layer's fullest row or column over Lemma 5.1's prediction of it, 3χ·max(d_in, d_out)."""
    return max(layer["column_max"], layer["row_max"]) / layer["predicted_spread"] if layer["kept"] else math.nan
