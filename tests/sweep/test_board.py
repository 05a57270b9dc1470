import os

from rich.console import Console

from milkshake_mbp.sweep.board import Board
from milkshake_mbp.sweep.trials import Outcome

from .helpers import QUIET


def test_the_board_fits_the_screen(plan):
    grid = plan(f"--seed {' '.join(map(str, range(40)))}")
    board = Board(grid.name, grid.trials, QUIET)
    console = Console(width=80, height=20, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    board.console = console
    files = grid.trials[30].files
    files.folder.mkdir(parents=True)
    board.report(grid.trials[30], Outcome("running"))
    board._live = object()
    files.epochs.write_text("epoch,margin,bounds/paper/theorem_5_2\n0,-0.5,3.75\n")
    board.report(grid.trials[39], Outcome("failed", "diverged"))
    console.export_text()
    console.print(board.render())
    shown = console.export_text()
    assert len(shown.splitlines()) <= 20 and "more" in shown
    assert "38 waiting" in shown and "failed" in shown
    (line,) = [line for line in shown.splitlines() if "running" in line and "waiting" not in line]
    assert line.split()[:3] == ["30", "running", "1/1"] and line.split()[-2:] == ["3.75", "-0.5"]
