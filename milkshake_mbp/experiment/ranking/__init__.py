"""Which bound ranks networks: every row of finished runs against their errors, as tables, figures and a page."""

from milkshake_mbp.experiment.ranking.networks import TARGETS, Network, Networks, find_networks
from milkshake_mbp.experiment.ranking.study import Study, rank_networks
from milkshake_mbp.experiment.ranking.table import export_rankings, ranking_tables

__all__ = [
    "TARGETS",
    "Network",
    "Networks",
    "Study",
    "export_rankings",
    "find_networks",
    "rank_networks",
    "ranking_tables",
]
