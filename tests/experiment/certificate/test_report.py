import csv
import json
import math
import re
from dataclasses import asdict

import pytest
import torch

from milkshake_mbp.codec import CodedLayer, CodedNetwork, InputMap, code_bits, encode, to_file_bytes
from milkshake_mbp.experiment.certificate.figures import draw_certificate
from milkshake_mbp.experiment.certificate.files import CertificateFiles, history
from milkshake_mbp.experiment.certificate.report import write_certificate_report
from milkshake_mbp.reporting.report.charts import path, plot, stack
from milkshake_mbp.reporting.words import at_most
from milkshake_mbp.theory.bounds import ROWS
from tests.reporting.test_report import BROWSER, Page, bound, browse

__all__ = ["browse"]

GRID = InputMap(1, 8, 8, pool=2, stride=2)
CODED = next(row for row in ROWS if (row.convention, row.name) == ("rigorous", "coded"))


def network(inputs=GRID, hidden=5, classes=4):
    generator = torch.Generator().manual_seed(0)
    layers = []
    for columns, rows in ((inputs.num_inputs, hidden), (hidden, classes)):
        values = torch.randint(-2, 3, (rows, columns), generator=generator)
        layers.append(CodedLayer(values, torch.arange(rows), torch.ones(rows, dtype=torch.int64), 3))
    return CodedNetwork(inputs, tuple(layers))


@pytest.fixture
def make_run(tmp_path):
    """Writes the folder of a certificate, and gives its files and the content of result.json."""

    def make(made=None, epochs=20, rounds=3, config=(), result=()):
        files, made = CertificateFiles(tmp_path / "mine"), made or network()
        files.folder.mkdir()
        files.write_config({"datamodule": "mnist", "data_dir": "data"} | dict(config))
        code = encode(made)
        files.certificate.write_bytes(to_file_bytes(code))
        numbers = {
            "run": "mine",
            "seed": 1,
            "delta": 0.05,
            "bound": 0.123412,
            "code_bits": 8 * len(code),
            "train_error": 0.0213,
            "train_errors": 1278,
            "certified_test_error": 0.0275,
            "before_search": {"bound": 0.2345, "code_bits": 5432, "train_error": 0.0456},
            "widths": list(made.widths),
            "nonzeros": [layer.nonzeros for layer in made.layers],
            "inputs": asdict(made.inputs),
            "exact": True,
            "parts": code_bits(made),
            "versions": {"python": "3.11.7"},
            "n": 60_000,
            "num_classes": 10,
            "test_error": {"unpruned": 0.0275},
            "bounds": [bound(CODED, math.log(0.1251)), bound(ROWS[0], 2.0)],
            "seconds": 75.0,
        } | dict(result)
        files.write_result(numbers)
        names = ["bound", "bits", "train_error", "nonzeros", "best_bound"]
        with files.epochs.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["epoch", "train_loss", *(f"certificate/{name}" for name in names)])
            for epoch in range(epochs):
                # The last coding, after the fit, logs no best.
                coded = [0.5 - 0.02 * epoch, 9000 - 200 * epoch, 0.05, 700, "" if epoch == epochs - 1 else 0.4]
                writer.writerow([epoch, 0.3, *(coded if epoch % 5 == 4 else [""] * 5)])
        if rounds:
            with files.rounds.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["round", "bound", "bits", "error", "best_bound"])
                for number in range(1, rounds + 1):
                    writer.writerow([number, 0.13 - 0.002 * number, 5400 + number, 0.0213, 0.128])
        return files, numbers

    return make


@pytest.fixture
def page(make_run):
    def write(*given, **keys):
        files, result = make_run(*given, **keys)
        assert write_certificate_report(files, result) == files.report
        return Page(files.report)

    return write


def test_every_number_is_that_of_the_result(make_run):
    files, result = make_run()
    write_certificate_report(files, result)
    shown = Page(files.report)
    told = shown.text.split("Where the bits go")[0]
    # 12.3412% is rounded up: less than that is not proved.
    for number in ("at most 12.35%", "at least 95%", "60,000 training", "1,278 of", "(2.13%)", "misclassifies 2.75%"):
        assert number in told
    bits = result["code_bits"]
    assert f"{bits:,} bits ({bits // 8:,} bytes)" in told
    for before in ("23.45% before", "5,432 before", "4.56% before"):
        assert before in told
    assert f"{sum(result['nonzeros'])}nonzero, of {16 * 5 + 5 * 4}" in told and "1×4×4 → 5 → 4" in told
    assert "sums of 2 × 2 pixels at stride 2" in told and "integers below 2⁵³" in told
    table = shown.text.split("Bits by layer and part")[1].split("Nonzero weights")[0]
    for number in result["parts"].values():
        assert f"{number:,.1f}" in table
    assert f"{sum(result['parts'].values()):,.1f}" in table and f"counts whole bytes, {bits:,} bits." in shown.text
    assert "The coded bytes" in shown.text and f"error ≤ {at_most(math.exp(math.log(0.1251)))}" in shown.text
    assert f"--verify {files.certificate} -c {files.config}" in shown.text and "1 min 15 s" in shown.text
    assert "datamodule: mnist" in shown.text and "python 3.11.7" in shown.text


def test_a_guarantee_is_never_rounded_down():
    assert [at_most(value) for value in (0.12, 0.1200001, 0.1299999, 0.5, 1.0)] == (
        ["12.00%", "12.01%", "13.00%", "50.00%", "100.00%"]
    )


def test_history_is_what_was_coded(make_run):
    files, _ = make_run()
    epochs, rounds = history(files)
    assert [row["at"] for row in epochs] == [5, 10, 15, 20] and [row["at"] for row in rounds] == [1, 2, 3]
    assert [row["bits"] for row in epochs] == [8200, 7200, 6200, 5200]
    assert [row["best_bound"] for row in epochs] == [row["bound"] for row in epochs]
    assert rounds[2] == {"at": 3, "bound": pytest.approx(0.124), "bits": 5403, "error": 0.0213, "best_bound": 0.128}


def test_training_and_search_share_an_axis(page):
    shown = page()
    guarantee, length, against = shown.all("figure")
    names = ["5", "10", "15", "20", "+1", "+2", "+3"]
    assert [json.loads(figure["data-x"]) for figure in (guarantee, length)] == [names, names]
    assert json.loads(against["data-x"]) == [*(f"epoch {e}" for e in (5, 10, 15, 20)), "round 1", "round 2", "round 3"]
    # Fewer bits are further left, whenever they came; the search took a few more.
    at = json.loads(against["data-at"])
    assert at[:4] == sorted(at[:4], reverse=True) and at[3] < at[4] < at[5] < at[6]
    assert json.loads(against["data-up"])[:4] == sorted(json.loads(against["data-up"])[:4])


def test_what_a_run_may_lack(page):
    shown = page(epochs=0, rounds=0)
    assert not shown.all("figure") and "During training" not in shown.text


def test_no_search(page):
    shown = page(rounds=0)
    assert len(shown.all("figure")) == 3 and "round" not in shown.all("figure")[0]["data-x"]
    assert "round of the search" not in shown.text


def test_maps_are_the_weights_of_the_bytes(page):
    made = network()
    source = page(made).source.split('class="maps"')[1].split("</ul>")[0]
    neurons = source.split("<li>")[1:]
    assert len(neurons) == 5
    for neuron, values in zip(neurons, made.layers[0].values.reshape(5, 4, 4).tolist(), strict=True):
        found = {}
        for line, look in re.findall(r'<path d="([^"]*)" class="(\w+)"', neuron):
            for column, row in re.findall(r"M(\d+) (\d+)h1", line):
                found[int(row), int(column)] = look
        expected = {
            (row, column): "plus" if value > 0 else "minus"
            for row, line in enumerate(values)
            for column, value in enumerate(line)
            if value
        }
        assert found == expected


@pytest.mark.parametrize("inputs", [InputMap(1, 1, 16, pixels=False), InputMap(3, 6, 6, grey=True)])
def test_maps_only_of_what_lies_on_a_grid(page, inputs):
    shown = page(network(inputs))
    assert bool(shown.all("ul", "maps")) == (inputs.height > 1)
    assert ("on the datamodule's inputs" if not inputs.pixels else "on pixels, grey") in shown.text


def test_it_needs_nothing_from_outside(page):
    shown = page()
    assert not re.search(r"https?:|//[a-z]|@import|url\(", shown.source)
    assert not [given for _, given in shown.elements if {"src", "action", "href"} & set(given)]
    assert all("aria-hidden" in svg or "aria-label" in svg or "viewbox" in svg for svg in shown.all("svg"))


def test_text_from_files_is_only_text(page):
    evil = '<script>alert("1")</script>'
    shown = page(config={"datamodule": evil}, result={"versions": {evil: "1"}})
    assert len(shown.all("script")) == 1 and evil in shown.text


def test_bars_fill_the_track_in_order():
    drawn = stack({"a": 1.0, "b": 3.0}, 8.0)
    assert re.findall(r'x="([\d.]+)%" width="([\d.]+)%"', drawn) == [("0.00", "12.50"), ("12.50", "37.50")]


def test_a_path_goes_on_from_its_lowest_point():
    parts = {"one": [("a", 4.0, 0.1), ("b", 2.0, 0.3)], "none": [], "two": [("c", 3.0, 0.2), ("zero", 1.0, 0.0)]}
    forms = {"show_x": "{:g}".format, "show_y": "{:g}".format, "show_tick": "{:g}".format}
    drawn = path("t", parts, x_label="x", y_label="y", **forms)
    lines = re.findall(r'd="M([^"]*)" class="line"', drawn)
    first, second = (line.split("L") for line in lines if line != "0 6h26")
    assert first[0] == second[0] and len(first) == len(second) == 2
    readouts = [json.loads(text.replace("&quot;", '"')) for text in re.findall(r'data-values="([^"]*)"', drawn)]
    assert readouts == [["4, 0.1", "2, 0.3", "2, 0.3"], ["–", "–", "3, 0.2"]]
    assert path("t", {"none": []}, x_label="x", y_label="y", **forms) is None
    assert plot("t", [], [], x_label="x", y_label="y") is None


def test_a_browser_draws_it(make_run, browse):
    if BROWSER is None:
        pytest.skip("no Chromium on PATH")
    files, result = make_run()
    found, said = browse(
        write_certificate_report(files, result),
        """
        const all = selector => [...document.querySelectorAll(selector)];
        const root = document.documentElement, found = {drawn: root.dataset.drawn};
        all("details").forEach(each => each.open = true);
        found.overflow = root.scrollWidth - innerWidth;
        found.parts = all(".part").filter(part => part.getBoundingClientRect().width > 1).length;
        found.maps = all(".maps path").filter(each => each.getBoundingClientRect().width > 5).length;
        const chart = all(".chart")[2], plot = chart.querySelector(".plot"), box = plot.getBoundingClientRect();
        const at = JSON.parse(chart.dataset.at), up = JSON.parse(chart.dataset.up);
        // Epoch 20 is nearer across, epoch 15 in all.
        const across = 0.6 * at[3] + 0.4 * at[2], down = up[2];
        plot.dispatchEvent(new PointerEvent("pointermove", {
          clientX: box.left + across / 100 * box.width, clientY: box.top + down / 100 * box.height}));
        found.hover = [...chart.querySelectorAll("output")].map(each => each.textContent);
        plot.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowLeft"}));
        found.key = chart.querySelector(".at output").textContent;
        found.level = chart.querySelector(".level").getAttribute("y1") === up[1] + "%";
        root.dataset.found = JSON.stringify(found);
        """,
    )
    assert said == []
    assert found["drawn"] == "3" and found["overflow"] <= 0 and found["level"]
    # Each part of each of the two layers that takes any bits, and the header.
    assert found["parts"] == sum(bits > 0 for bits in result["parts"].values())
    assert found["maps"] >= 5
    assert found["hover"] == ["epoch 15", "6,200 bits, 22.00%", "–"] and found["key"] == "epoch 10"


def test_the_report_does_not_need_the_figure(make_run):
    files, result = make_run(epochs=0, rounds=0)
    assert draw_certificate(files) == [] and write_certificate_report(files, result).is_file()
