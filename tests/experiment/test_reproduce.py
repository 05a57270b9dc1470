import io
import math
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from rich.console import Console

from milkshake_mbp.errors import UserError
from milkshake_mbp.experiment.reproduce import (
    Part,
    Target,
    make_plan,
    read_target,
    write_figure1,
    write_figure2,
    write_table1,
)
from milkshake_mbp.reporting.diagnostics import LayerAtStrength, NetworkAtStrength, draw_d_curves
from milkshake_mbp.reporting.figures import draw_comparison, draw_training
from milkshake_mbp.reporting.tables import PRINTED, compare, find_runs
from milkshake_mbp.runs.names import run_name

from ..reporting.tables.helpers import write_run

ROOT = Path(__file__).parents[2]
MNIST = Part(ROOT / "cfgs" / "mnist_784.yaml", "mnist", (500, 784))
CIFAR10 = Part(ROOT / "cfgs" / "cifar10_784.yaml", "cifar10")
DIGITS = Part(ROOT / "cfgs" / "digits.yaml", "digits", (32, 64))
TABLE = Target([MNIST], [DIGITS], write_table1)
FIGURE = Target([MNIST, CIFAR10], [DIGITS], write_figure1)
WIDTHS = (500, 784, 1000, 1500, 2000, 2500)


@pytest.fixture
def runs(tmp_path):
    """All that the paper trained, with three seeds at width 784."""
    for width in WIDTHS:
        shift = width / 1000
        for seed in (1, 2, 3) if width == 784 else (1,):
            bounds = (22 + shift + seed / 10, 17 + shift, 11 + shift, 3.3 + shift / 2)
            write_run(tmp_path / "runs", bounds, ffn_hidden_dim=width, seed=seed)
    write_run(tmp_path / "runs", (math.inf, math.inf, math.inf, 4.24), datamodule="cifar10", margin=-8.0, error=0.45)
    return find_runs([str(tmp_path / "runs")])


def assert_fit_for_print(figure):
    """No wider than two columns, no text below 7 pt, and nothing beyond the page."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = figure.get_size_inches()
    drawn = figure.get_tightbbox(canvas.get_renderer())
    assert width <= 7 and min(drawn.x0, drawn.y0) >= -0.01 and drawn.x1 <= width + 0.01 and drawn.y1 <= height + 0.01
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 7


def test_figure1(runs):
    bars = [compare(runs, name, [784]) for name in ("mnist", "cifar10")]
    figure = draw_comparison(bars, compare(runs, "mnist", WIDTHS))
    mnist, cifar10, widths = figure.axes
    assert len(mnist.patches) == 5 and len(cifar10.patches) == 2  # infinite ones have no bar
    assert mnist.patches[0].get_width() == pytest.approx(22.984)
    assert len(widths.lines) == 2 * len(PRINTED) + 1  # here and the paper's, and the zero line
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "the paper's"
    texts = " ".join(text.get_text() for text in figure.findobj(Text))
    assert "margin 2,\nepoch 60, 3 seeds" in texts and "natural log" in texts and "∞ (paper 33.19)" in texts
    assert_fit_for_print(figure)


def test_figure1_without_the_paper(tmp_path):
    write_run(tmp_path, datamodule="digits", ffn_hidden_dim=32)
    comparison = compare(find_runs([str(tmp_path)]), "digits", [32])
    figure = draw_comparison([comparison], comparison, "Quick version")
    assert len(figure.axes) == 2 and len(figure.axes[1].lines) == len(PRINTED) + 1
    assert "paper" not in " ".join(text.get_text() for text in figure.findobj(Text))
    assert_fit_for_print(figure)


def test_figure2(runs):
    chosen = [run for run in runs if (run.datamodule, run.width) == ("mnist", 784)]
    figure = draw_training(chosen, "title")
    bound, margin, error, strength = figure.axes
    # Three runs; the line of no pruning, and of a margin of zero.
    assert [len(axis.lines) for axis in figure.axes] == [4, 4, 3, 3]
    # Three changes of sign in each, on every panel.
    assert [len(axis.patches) for axis in figure.axes] == [9] * 4
    assert bound.lines[0].get_xydata().tolist()[:2] == [[10, 3.756], [20, 3.754]]
    assert error.lines[0].get_ydata()[0] == pytest.approx(math.log(0.03))
    assert math.isnan(strength.lines[0].get_ydata()[0]) and strength.get_yscale() == "log"
    assert margin.get_ylabel() == "margin (network output)" and "natural log" in bound.get_ylabel()
    assert_fit_for_print(figure)
    assert draw_training([]) is None


def test_d_curves():
    strengths = [0.0, 0.1, 5.0, 10.0]
    whole = [NetworkAtStrength(d, 1.0, d, d, d, d, d < 1, 0.5, 0.5) for d in strengths]
    layers = [LayerAtStrength(d, name, 10, 12, 30.0, 0.5, 0.5) for name in "abcde" for d in strengths]
    figure = draw_d_curves(whole, layers, "title")
    assert [len(axis.lines) for axis in figure.axes] == [4, 10]
    assert list(figure.axes[0].lines[0].get_xdata()) == strengths[1:]
    assert_fit_for_print(figure)


@pytest.mark.long
def test_figures_are_written_where_there_is_something_to_draw(runs, tmp_path):
    console = Console(file=io.StringIO())
    plan = make_plan("figure1", FIGURE, ["--runs", str(tmp_path / "runs"), "--out_dir", str(tmp_path)])
    for write, name in ((write_figure1, "figure1"), (write_figure2, "figure2")):
        files = write(plan.evidence(console))
        assert [path.name for path in files] == [f"{name}.pdf", f"{name}.png"]
        assert files[0].read_bytes()[:5] == b"%PDF-" and files[1].read_bytes()[1:4] == b"PNG"
    empty = make_plan("figure1", FIGURE, ["--out_dir", str(tmp_path / "empty")]).evidence(console)
    assert write_figure1(empty) == write_figure2(empty) == []
    assert empty.missing[-1] == "CIFAR-10, width 784, seed 1: not started"


def test_a_plan_is_the_papers_with_the_users_keys_over_it(tmp_path):
    plan = make_plan("table1", TABLE, ["--seed", "[1,2]", "--max_epochs", "3", "--out_dir", str(tmp_path)])
    (trials,) = plan.trials.values()
    assert [(args.ffn_hidden_dim, args.seed) for args in trials] == [(500, 1), (500, 2), (784, 1), (784, 2)]
    assert {args.max_epochs for args in trials} == {3} and trials[0].lr == 0.02
    assert plan.folder == tmp_path / "table1" and plan.unfinished == trials
    # The keys of the reproduction are not those of a run, which is exps/mbp.py's.
    assert not {"quick", "runs"} & set(vars(trials[0]))
    assert len({run_name(args) for args in trials}) == 4
    quick = make_plan("table1", TABLE, ["--quick", "--out_dir", str(tmp_path)])
    assert quick.folder == tmp_path / "table1-quick" and list(quick.trials) == ["digits"]
    assert [args.ffn_hidden_dim for args in quick.trials["digits"]] == [32, 64]
    one = make_plan("table1", TABLE, ["--ffn_hidden_dim", "8"])
    assert [args.ffn_hidden_dim for args in one.trials["mnist"]] == [8]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lr", "[0.1,0.2]"], "lr: expected one value; only"),
        (["--datamodule", "digits"], "expected mnist, got digits"),
        (["--seed", "[1,2]"], "table1: expected one network, got 4"),
        (["--quik"], 'did you mean "quick"'),
    ],
)
def test_what_does_not_belong_here(flags, message):
    with pytest.raises(UserError, match=message):
        make_plan("table1", Target([MNIST], [DIGITS], write_table1, one=True), flags)


def test_target():
    targets = {"table1": TABLE, "figure1": FIGURE}
    assert read_target(["table1", "--quick"], targets) == ("table1", ["--quick"])
    for argv, got in (
        ([], "nothing"),
        (["table3"], "table3"),
        (["table1", "figure1"], "figure1"),
        (["--quick"], "--q"),
    ):
        with pytest.raises(UserError, match=f"expected one of table1, figure1.*got {got}"):
            read_target(argv, targets)
