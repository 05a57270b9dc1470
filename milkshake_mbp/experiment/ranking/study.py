"""Every row of the ladder against every target."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from milkshake_mbp.experiment.ranking.networks import TARGETS, Key, Networks
from milkshake_mbp.theory.bounds import CONVENTIONS, ROWS
from milkshake_mbp.theory.ranking import Ranking, rank

__all__ = ["Entry", "Study", "rank_networks"]

_LABELS = {(row.convention, row.name): row.label for row in ROWS}
_SIZE = ("measure", "params")


@dataclass(frozen=True)
class Entry:
    """One row of the ladder against one target.

    Attributes:
        row: its convention and name.
        target: by its name in `TARGETS`.
        ranking: how well it ranks.
        values: (n,) the row's natural logs, of the networks that have it.
        errors: (n,) the target.
        sizes: (n,) the natural logs of their parameter counts; empty if they are unknown.
    """

    row: Key
    target: str
    ranking: Ranking
    values: Sequence[float]
    errors: Sequence[float]
    sizes: Sequence[float] = ()

    @property
    def label(self) -> str:
        """The row's name for people."""
        return _LABELS.get(self.row, self.row[1])


@dataclass(frozen=True)
class Study:
    """What came of the comparison.

    Attributes:
        networks: that were compared.
        entries: every row against every target.
    """

    networks: Networks
    entries: tuple[Entry, ...]

    def block(self, target: str, convention: str) -> list[Entry]:
        """The rows of one convention against one target, the largest τ first, the undefined last."""
        entries = [entry for entry in self.entries if (entry.target, entry.row[0]) == (target, convention)]
        return sorted(entries, key=lambda entry: -entry.ranking.tau.value if entry.ranking.tau.defined else 2)

    @property
    def targets(self) -> list[str]:
        """Those that are known."""
        return [target for target in TARGETS if any(entry.target == target for entry in self.entries)]

    @property
    def conventions(self) -> list[str]:
        """Those with rows, in the order of the ladder."""
        return [name for name in CONVENTIONS if any(entry.row[0] == name for entry in self.entries)]

    @property
    def pooled(self) -> bool:
        """Whether the environments hold all settings of the other hyperparameters."""
        return all(entry.ranking.pooled for entry in self.entries)


def rank_networks(
    networks: Networks, *, resamples: int = 200, seed: int = 0, min_effective_sample: float = 12
) -> Study:
    """Rank the networks by every row of their ladders, against every target.

    Args:
        networks: as `find_networks` gives them.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        min_effective_sample: least effective sample of an environment.
    """
    entries = []
    for target in TARGETS:
        for row in networks.rows:
            kept = [
                index
                for index, network in enumerate(networks.kept)
                if row in network.rows and network.targets[target] is not None
            ]
            if len(kept) < 3:
                continue
            chosen = [networks.kept[index] for index in kept]
            values = [network.rows[row] for network in chosen]
            errors = [float(network.targets[target] or 0) for network in chosen]
            sizes = [network.rows[_SIZE] for network in chosen] if all(_SIZE in n.rows for n in chosen) else []
            ranking = rank(
                values,
                errors,
                networks.design.subset(np.array(kept)) if len(kept) < len(networks.kept) else networks.design,
                num_samples=min(network.num_test for network in chosen),
                size=sizes or None,
                resamples=resamples,
                seed=seed,
                min_effective_sample=min_effective_sample,
            )
            entries.append(Entry(row, target, ranking, values, errors, sizes))
    return Study(networks, tuple(entries))
