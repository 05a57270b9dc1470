"""The files of a certificate, and what it went through."""

import csv
from pathlib import Path

from milkshake_mbp.runs.files import RunFiles

__all__ = ["CertificateFiles", "history"]


class CertificateFiles(RunFiles):
    """The folder of a certificate: the code itself, beside what every run leaves.

    Args:
        folder: where it is.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.certificate = folder / "certificate.mbp"
        self.search = folder / "search.json"
        self.rounds = folder / "rounds.csv"


def history(files: CertificateFiles) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """What was coded, the training's epochs and then the search's rounds, both from 1.

    Args:
        files: the folder of a certificate.

    Returns:
        Rows with `at`, the epoch or round, `bits`, and `bound`, `error` and `best_bound` as probabilities.
    """
    epochs = [
        {
            "at": row["epoch"] + 1,
            "bound": row["certificate/bound"],
            "bits": row["certificate/bits"],
            "error": row["certificate/train_error"],
        }
        for row in _rows(files.epochs)
        if "certificate/bound" in row
    ]
    rounds = [{"at": row.pop("round"), **row} for row in _rows(files.rounds)]
    for index, row in enumerate(epochs):
        # Not as logged: the coding at the end of fit logs none.
        row["best_bound"] = min(earlier["bound"] for earlier in epochs[: index + 1])
    return epochs, rounds


def _rows(path: Path) -> list[dict[str, float]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: float(cell) for key, cell in row.items() if key and cell} for row in csv.DictReader(file)]
