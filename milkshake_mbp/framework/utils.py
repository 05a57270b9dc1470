"""What experiments import beside models and data: metrics of a batch, splits, checkpoints of a run, numpy arrays."""

import math
from argparse import Namespace
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.datamodules.dataset import Subset
from milkshake_mbp.framework.models.metrics import predicted_classes, top5

__all__ = ["compute_accuracy", "get_weights", "ignore_warnings", "random_split", "to_np"]


def get_weights(args: Namespace, version: int | str = "", best: bool | None = None, idx: int | None = None) -> str:
    """The file of a checkpoint that a run has kept.

    Args:
        args: the configuration: out_dir, and wandb_dir for a run of upstream Milkshake.
        version: the run's folder under out_dir, none by default; or, as upstream names them, the number or name of a
            run under lightning_logs, in this folder or in wandb_dir.
        best: whether the checkpoint of the smallest loss is wanted.
        idx: which of the others, in the order in which they were written; the last if not given.

    Raises:
        UserError: there is none.
    """
    name = f"version_{version}" if isinstance(version, int) else version
    roots = (Path(args.out_dir) / name, Path("lightning_logs") / name, Path(args.wandb_dir) / "lightning_logs" / name)
    for root in roots:
        files = sorted((root / "checkpoints").glob("*.ckpt"), key=lambda path: (path.stat().st_mtime, path.name))
        kept = [path for path in files if ("best" in path.name) == bool(best)]
        # last.ckpt is written over again by the next training in the same folder.
        numbered = [path for path in kept if path.name != "last.ckpt"] or kept
        if numbered and -len(numbered) <= (-1 if idx is None else idx) < len(numbered):
            return str(numbered[-1 if idx is None else idx])
    raise UserError(
        f"get_weights: no {'best checkpoint' if best else f'checkpoint of index {idx}'} in "
        f"{', '.join(str(root / 'checkpoints') for root in roots)}"
    )


def compute_accuracy(probs: Tensor, targets: Tensor, num_classes: int, num_groups: int) -> dict[str, Any]:
    """Accuracy of a batch, overall, by class and by group, and the counts that it is made of.

    Args:
        probs: (n, k) scores, or (n,) probabilities of class 1 where num_classes is 1.
        targets: (n,) class numbers, or (n, 2) with the group.
        num_classes: k.
        num_groups: 0 without groups, for which there is then one, with every sample right.

    Returns:
        acc, correct and total; each with _by_class and _by_group; acc5 and correct5 likewise, for the five most
        probable classes, among which every one is where there are no more. NaN where a class or a group has no sample.
    """
    labels, groups = (targets[:, 0], targets[:, 1]) if targets.ndim == 2 else (targets, None)
    right = {"": predicted_classes(probs) == labels, "5": top5(probs, labels)}
    found: dict[str, Any] = {"total": len(labels)}
    for kind, numbers, count in (("class", labels, num_classes), ("group", groups, num_groups)):
        if numbers is None or not count:
            found |= {
                f"{name}_by_{kind}": torch.ones(1, device=probs.device) for name in ("total", "correct", "correct5")
            }
            found |= {f"{name}_by_{kind}": torch.ones(1, device=probs.device) for name in ("acc", "acc5")}
            continue
        among = numbers[:, None] == torch.arange(count, device=numbers.device)
        total = among.sum(dim=0)
        found[f"total_by_{kind}"] = total
        for suffix, values in right.items():
            correct = (among & values[:, None]).sum(dim=0).float()
            found |= {f"correct{suffix}_by_{kind}": correct, f"acc{suffix}_by_{kind}": correct / total}
    for suffix, values in right.items():
        found |= {f"correct{suffix}": values.float().sum(), f"acc{suffix}": values.float().mean()}
    return found


def to_np(x: Any) -> np.ndarray:
    """A tensor on any device, a list of tensors, or what numpy takes, as a numpy array.

    Raises:
        ValueError: it is none of them.
    """
    if isinstance(x, Tensor):
        return x.detach().cpu().numpy()
    if isinstance(x, (list, tuple)) and len(x) and isinstance(x[0], Tensor):
        return torch.stack(list(x)).detach().cpu().numpy()
    if isinstance(x, (np.ndarray, list, tuple)):
        return np.asarray(x)
    raise ValueError(f"expected a tensor, an array or a list, got {type(x).__name__}")


def random_split(dataset: Any, lengths: Sequence[float], generator: torch.Generator) -> list[Any]:
    """Disjoint parts of a data set, drawn at random, as `Subset`s.

    Args:
        dataset: a `Dataset` or an `ImageDataset`.
        lengths: of the parts, or shares that sum to 1, what rounding leaves going to the first parts, one each.
        generator: what the order is drawn from.

    Raises:
        ValueError: they do not sum to the length of the data set.
    """
    counts = [int(length) for length in lengths]
    if math.isclose(sum(lengths), 1):
        counts = [math.floor(len(dataset) * share) for share in lengths]
        for index in range(len(dataset) - sum(counts)):
            counts[index % len(counts)] += 1
    if sum(counts) != len(dataset):
        raise ValueError(f"lengths {list(lengths)} do not sum to the {len(dataset)} samples, nor to 1")
    order = torch.randperm(len(dataset), generator=generator)
    return [Subset(dataset, order[end - count : end]) for end, count in zip(accumulate(counts), counts, strict=True)]


def ignore_warnings() -> None:
    """Nothing: `main` hides what a user can do nothing about; for scripts written for upstream Milkshake."""
