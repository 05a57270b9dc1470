"""Measure which bounds and measures order finished runs as their test errors do.

python exps/rank.py out/RUN [out/RUN ...] [--out_dir FOLDER] [--until_loss LOSS]

A folder may be that of a run or a sweep, or may contain runs; a quoted pattern such as "out/rank-*" is expanded.
Train the networks with exps/mbp.py, as in cfgs/rank_digits.yaml; unfinished runs are listed and left out.
"""

import argparse
from pathlib import Path

from milkshake_mbp.framework.cli import run_cli, script_parser
from milkshake_mbp.framework.console import make_console


def main() -> None:
    """Read the runs, rank them, and write the tables, the figures and report.html."""
    parser = script_parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run or sweep, or one that contains runs")
    parser.add_argument("--out_dir", help="folder for the results; by default `ranking` next to the first run")
    parser.add_argument("--until_loss", type=_positive, help="training loss that a network must have reached")
    parser.add_argument("--resamples", type=_count, default=1000, help="number of bootstrap resamples (default 1000)")
    parser.add_argument("--seed", type=_count, default=0, help="seed of the bootstrap")
    parser.add_argument(
        "--min_effective_sample", type=_positive, default=12.0, help="smallest effective sample (default 12)"
    )
    parser.add_argument("--figures", choices=["true", "false"], default="true", help="whether to draw figures as PDF")
    parser.add_argument("--debug", action="store_true", help="show an error's traceback instead of one line")
    keys = parser.parse_args()
    # What follows loads Lightning, which takes seconds; help and refusals come without.
    from milkshake_mbp.experiment.ranking import export_rankings, find_networks, rank_networks, ranking_tables
    from milkshake_mbp.experiment.ranking.figures import draw_scatter, draw_sign_errors
    from milkshake_mbp.experiment.ranking.report import write_ranking_report

    networks = find_networks(keys.runs, keys.until_loss)
    study = rank_networks(
        networks, resamples=keys.resamples, seed=keys.seed, min_effective_sample=keys.min_effective_sample
    )
    console = make_console()
    console.print(ranking_tables(study), soft_wrap=False)
    folder = Path(keys.out_dir).expanduser() if keys.out_dir else networks.folder / "ranking"
    export_rankings(study, folder)
    if keys.figures == "true":
        draw_sign_errors(study, folder)
        for target in study.targets:
            draw_scatter(study, target, folder)
    console.print(f"Report: {write_ranking_report(study, folder / 'report.html')}")


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 up, got {text}")
    return value


if __name__ == "__main__":
    run_cli(main)
