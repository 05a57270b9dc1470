"""What is counted while a model steps, summed on the device and read once an epoch."""

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["METRICS", "ClassificationSums", "Mean", "predicted_classes", "top5"]

METRICS = (
    "loss",
    "acc",
    "acc5",
    "acc_by_class",
    "acc5_by_class",
    "acc_by_group",
    "acc5_by_group",
    "worst_group_acc",
)


def predicted_classes(probs: Tensor) -> Tensor:
    """(n,) class numbers of (n, k) scores, or of (n,) probabilities of class 1."""
    return probs.argmax(dim=1) if probs.ndim == 2 else (probs >= 0.5).long()


def top5(probs: Tensor, labels: Tensor) -> Tensor:
    """(n,) whether a label is among the five highest of k scores; all are where k ≤ 5."""
    if probs.ndim < 2 or probs.shape[1] <= 5:
        return torch.ones_like(labels, dtype=torch.bool)
    return (probs.topk(5, dim=1).indices == labels[:, None]).any(dim=1)


class ClassificationSums(Metric):
    """Loss and accuracy, overall, by class and by group.

    torchmetrics' own accuracy costs several times this update, which shows at small widths; its Metric still does the
    reduction across processes.

    Args:
        num_classes: k, 2 where one output tells two classes apart.
        num_groups: 0 where targets are class numbers alone.
        top5: whether samples whose class is among the five most probable are counted too.
    """

    full_state_update = False

    def __init__(self, num_classes: int, num_groups: int = 0, top5: bool = False) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.top5 = top5
        self.loss: Tensor
        self.correct: Tensor
        self.count: Tensor
        self.correct5: Tensor
        self.group_correct: Tensor
        self.group_count: Tensor
        self.group_correct5: Tensor
        self.add_state("loss", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        # Whole numbers, which a module in half precision leaves as they are: as floats they would stop counting.
        for of, size in (("", num_classes), ("group_", num_groups)):
            for name in ("correct", "count", "correct5"):
                self.add_state(of + name, torch.zeros(size, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, loss: Tensor, probs: Tensor, targets: Tensor) -> None:
        """Add one batch: its mean loss, (n, k) scores or (n,) probabilities of class 1, (n,) or (n, 2) targets."""
        labels = targets[:, 0] if targets.ndim == 2 else targets
        right = (predicted_classes(probs) == labels).to(self.correct.dtype)
        mean = loss.detach().to(torch.promote_types(loss.dtype, torch.float32))
        # Nothing is changed in place: after `Trainer.validate` the sums are tensors of its inference mode.
        self.loss = self.loss.double() + mean * len(labels)
        among = top5(probs, labels).to(right.dtype) if self.top5 else None
        self._count("", labels, right, among)
        if self.num_groups and targets.ndim == 2:
            self._count("group_", targets[:, 1], right, among)

    def _count(self, of: str, numbers: Tensor, right: Tensor, among: Tensor | None) -> None:
        for name, values in (("correct", right), ("count", torch.ones_like(right)), ("correct5", among)):
            if values is not None:
                setattr(self, of + name, getattr(self, of + name).index_add(0, numbers, values))

    def compute(self) -> dict[str, Tensor]:
        """Means over the samples seen; NaN for a class or a group that was not."""
        total = self.count.sum()
        values = {"loss": self.loss / total, "acc": self.correct.sum() / total}
        values |= _each("acc_class", self.correct / self.count)
        if self.top5:
            values["acc5"] = self.correct5.sum() / total
            values |= _each("acc5_class", self.correct5 / self.count)
        if self.num_groups:
            by_group = self.group_correct / self.group_count
            values |= _each("acc_group", by_group)
            values["worst_group_acc"] = by_group.nan_to_num(nan=torch.inf).min()
            if self.top5:
                values |= _each("acc5_group", self.group_correct5 / self.group_count)
        return values


class Mean(Metric):
    """The mean of a number over samples."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.total: Tensor
        self.count: Tensor
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, value: Tensor, count: int) -> None:
        """Add `count` samples whose mean is `value`."""
        self.total = self.total.double() + value.double() * count
        self.count = self.count + count

    def compute(self) -> Tensor:
        """The mean."""
        return self.total / self.count


def _each(name: str, values: Tensor) -> dict[str, Tensor]:
    return {f"{name}{index:02d}": value for index, value in enumerate(values)}
