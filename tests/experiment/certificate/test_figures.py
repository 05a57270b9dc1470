import matplotlib.figure
import pytest
from matplotlib.image import imread

from milkshake_mbp.experiment.certificate import figures
from milkshake_mbp.experiment.certificate.figures import ANCHORS, draw_certificate
from tests.experiment.certificate.test_report import make_run

__all__ = ["make_run"]


@pytest.fixture
def drawn(make_run, monkeypatch):
    """What is drawn of a run, axis by axis, and the files."""
    kept = []

    def keep(figure, path, dpi=150):
        kept.append(figure)
        return [path]

    def draw(**keys):
        monkeypatch.setattr(figures, "save_figure", keep)
        paths = draw_certificate(make_run(**keys)[0])
        assert isinstance(kept[0], matplotlib.figure.Figure)
        return kept[0].axes, paths

    return draw


def curves(axis):
    return {line.get_label(): line.get_xydata().tolist() for line in axis.lines if not line.get_label().startswith("_")}


def test_the_files_are_figures(make_run):
    files, _ = make_run()
    pdf, png = draw_certificate(files)
    assert (pdf, png) == (files.figures / "certificate.pdf", files.figures / "certificate.png")
    assert pdf.read_bytes().startswith(b"%PDF") and imread(png).shape[1] == 1400
    assert imread(png).std() > 0.01


def test_curves_are_what_was_coded(drawn):
    (training, search, path), _ = drawn()
    bounds = [[5, 0.42], [10, 0.32], [15, 0.22], [20, 0.12]]
    assert curves(training)["bound"] == [pytest.approx(point) for point in bounds]
    assert curves(training)["training error"] == [[epoch, 0.05] for epoch in (5, 10, 15, 20)]
    assert curves(search)["best so far"] == [[number, 0.128] for number in (1, 2, 3)]
    walked = curves(path)
    assert [point[0] for point in walked["training"]] == [8200, 7200, 6200, 5200]
    assert walked["search"][0] == min(walked["training"], key=lambda point: point[1]) and len(walked["search"]) == 4


def test_anchors_are_for_mnist_alone(drawn, make_run):
    (*_, path), _ = drawn()
    texts = [text.get_text() for text in path.texts]
    assert texts == ["46%, Zhou et al. 2019", "16.1%, Dziugaite & Roy 2017, two classes", "11.6%, Lotfi et al. 2022"]
    heights = [line.get_ydata()[0] for line in path.lines if line.get_linestyle() == "--"]
    assert heights == list(ANCHORS)


def test_other_data_has_no_anchors(drawn):
    (*_, path), _ = drawn(config={"datamodule": "digits"})
    assert not path.texts and len(path.lines) == 2


def test_no_search_no_panel_for_it(drawn):
    axes, _ = drawn(rounds=0)
    assert len(axes) == 2 and axes[0].get_xlabel() == "epoch" and list(curves(axes[1])) == ["training"]
