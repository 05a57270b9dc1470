"""Write a web page about one run, or one that compares several runs, from the files in their folders.

python exps/report.py RUN_FOLDER [RUN_FOLDER ...] [--out_dir FOLDER]

The folder of a sweep gives a page about all of its runs. Certificates and lotteries have their own kinds of page.
"""

import argparse
from pathlib import Path

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.cli import run_cli, script_parser


def main() -> None:
    """Write report.html into the run's folder, that of several runs into the folder that they lie in."""
    parser = script_parser(__doc__)
    parser.add_argument("folders", nargs="+", type=_path, metavar="RUN_FOLDER", help="folder of a run, finished or not")
    parser.add_argument("--out_dir", type=_path, help="folder for report.html")
    parser.add_argument("--debug", action="store_true", help="show an error's traceback instead of one line")
    args = parser.parse_args()
    print(f"Report: {_experiment(args.folders[0]) if len(args.folders) == 1 and not args.out_dir else _runs(args)}")


def _experiment(folder: Path) -> Path:
    """The page of what one folder is of: a certificate, the rounds of a lottery, a sweep or a run; it loads no more."""
    from milkshake_mbp.experiment.certificate.files import CertificateFiles
    from milkshake_mbp.runs.files import read_json

    certificate = CertificateFiles(folder)
    if certificate.certificate.exists():
        from milkshake_mbp.experiment.certificate.report import write_certificate_report

        if not (result := certificate.read_result()):
            raise UserError(f"{folder} is unfinished: run the command that started it again to continue it")
        return write_certificate_report(certificate, result)
    if any(folder.glob("seed-*/ticket-*/result.json")):
        from milkshake_mbp.experiment.lottery.report import write_rounds_report
        from milkshake_mbp.experiment.lottery.rounds import finished_rounds

        return write_rounds_report(finished_rounds(folder), folder)
    from milkshake_mbp.reporting.report import write_report

    sweep = read_json(folder / "sweep.json")
    runs = [folder.parent / trial["run"] for trial in sweep["trials"]] if sweep else [folder]
    return write_report([run for run in runs if run == folder or run.is_dir()], folder / "report.html")


def _runs(args: argparse.Namespace) -> Path:
    """The page that compares several runs."""
    from milkshake_mbp.reporting.report import write_report

    return write_report(args.folders, (args.out_dir or _place(args.folders)) / "report.html")


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _place(folders: list[Path]) -> Path:
    if len(folders) == 1:
        return folders[0]
    parents = {folder.resolve().parent for folder in folders}
    if len(parents) > 1:
        raise UserError("out_dir: the runs lie in different folders, name one for report.html with --out_dir FOLDER")
    return folders[0].parent


if __name__ == "__main__":
    run_cli(main)
