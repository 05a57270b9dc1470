import csv
import itertools
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from milkshake_mbp.errors import UserError
from milkshake_mbp.experiment.run import run
from milkshake_mbp.reporting.report import write_report
from milkshake_mbp.reporting.report.charts import Curve, Scale, nice_ticks, plot
from milkshake_mbp.reporting.report.markup import Markup, tag
from milkshake_mbp.theory.bounds import ROWS

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "input", "br"}
CHARTED = [row for row in ROWS if row.convention in ("leading", "rigorous")]


class Page(HTMLParser):
    """The elements of a page, which must all be closed in order, and its text."""

    def __init__(self, path):
        super().__init__()
        self.source = Path(path).read_text(encoding="utf-8")
        self.open, self.elements, self.text = [], [], ""
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def all(self, tag, look=""):
        return [
            given for name, given in self.elements if name == tag and look in ["", *(given.get("class") or "").split()]
        ]


def bound(row, log_value, **keys):
    risk = row.convention in ("leading", "rigorous")
    return {
        "name": row.name,
        "convention": row.convention,
        "log_value": log_value,
        "terms": {"gamma": 1.5},
        "holds_with": 0.98 if row.convention == "rigorous" else None,
        "claimed": None,
        "applies": True,
        "reason": "",
        "vacuous": log_value >= math.log(0.9) if risk else None,
        "trivial": log_value >= 0 if risk else None,
    } | keys


@pytest.fixture
def make_run(tmp_path):
    """Writes a folder as a run leaves it; what is None is not there."""

    def make(name="mine", epochs=3, config=(), result=(), sketch=True):
        folder = tmp_path / name
        folder.mkdir()
        keys = {"datamodule": "digits", "model": "ffn", "ffn_hidden_dim": 16, "ffn_num_layers": 2, "seed": 1} | dict(
            config or ()
        )
        layer = {"name": "model.0", "shape": [10, 16], "kept": 70, "sparsity": 0.5625, "predicted_sparsity": 0.57}
        sketched = {
            "nonzeros": 70,
            "column_max": 9,
            "row_max": 8,
            "sketch_shape": None,
            "certified": False,
            "reason": "too dense",
            "sketch_bits": math.inf,
            "naive_bits": 600.0,
            "dense_bits": 5120.0,
        }
        proven = {"certified": True, "reason": "", "sketch_shape": [7, 9], "sketch_bits": 512.0}
        numbers = {
            "run": name,
            "epochs": epochs,
            "seconds": 75.0,
            "versions": {"python": "3.11.7", "torch": None},
            "n": 1437,
            "num_classes": 10,
            "margin": 0.25,
            "d": 1e-5,
            "prune_d": 1.0,
            "true_error": 0.02,
            "compressed_error": 0.01,
            "test_error": {"unpruned": 0.02, "pruned": 0.05},
            "bounds": [bound(row, 1.0 + index) for index, row in enumerate(ROWS)],
            "prune": {"d": 1.0, "chi": 0.42, "sparsity": 0.5625, "layers": [layer]},
            "sketch": {"layers": {"model.0": sketched, "model.1": sketched | proven}} if sketch else None,
        }
        if config is not None:
            (folder / "config.yaml").write_text(yaml.safe_dump(keys))
        if result is not None:
            (folder / "result.json").write_text(json.dumps(numbers | dict(result)))
        if epochs:
            with (folder / "epochs.csv").open("w", newline="") as file:
                names = ["epoch", "margin", "d", "test_error", "true_error", "compressed_error"]
                keys = [f"bounds/{row.convention}/{row.name}" for row in ROWS]
                writer = csv.writer(file)
                writer.writerow(names + keys)
                for epoch in range(epochs):
                    values = [epoch, epoch - 1.0, 0.0 if epoch < 2 else 1e-5, 0.1, 0.1, 0.0]
                    writer.writerow(values + ["inf" if epoch < 1 else 2.0 + index for index in range(len(keys))])
        return folder

    return make


@pytest.fixture
def page(tmp_path):
    def write(*folders):
        return Page(write_report(folders, tmp_path / "report.html"))

    return write


def test_a_real_run(configure, tmp_path):
    files, result = run(configure(max_epochs=3))
    shown = Page(write_report([files.folder], files.folder / "report.html"))
    assert len(shown.all("circle")) == 2 + sum(
        math.isfinite(b["log_value"]) for b in result["bounds"] if b["convention"] in ("leading", "rigorous")
    )
    assert "for 3 epochs" in shown.text and f"{result['n']:,} training samples" in shown.text
    assert all(name in shown.text for name in result["layers"])
    assert len(shown.all("figure")) >= 4
    with files.epochs.open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    # What is drawn for prune_d is the error of the network that PruneCallback leaves.
    assert float(last["pruned_test_error"]) == pytest.approx(result["test_error"]["pruned"], rel=1e-6)
    assert "pruned at prune_d" in shown.text


def test_one_run_shows_it_all(make_run, page):
    shown = page(make_run())
    for text in ("2.00%", "5.00%", "56.2%", "0.25", "1e-05", f"0 of {len(CHARTED)}", "1 min 15 s", "ln 90% = -0.11"):
        assert text in shown.text
    for row in ROWS:
        assert row.label in shown.text
    assert len(shown.all("details", "rung")) == len(CHARTED)
    assert len(shown.all("circle")) == len(CHARTED) + 2
    assert len(shown.all("circle", "hollow")) == len(CHARTED)
    # Margin, d, errors, the paper's bounds, and those on the test error.
    assert len(shown.all("figure")) == 5
    assert len(shown.all("g", "curve")) == 1 + 1 + 3 + len([r for r in ROWS if r.convention != "measure"])
    assert "no [1]" in shown.text and "[1] too dense." in shown.text and "7 × 9" in shown.text
    assert "datamodule: digits" in shown.text and "torch unknown" in shown.text
    heads = [tag for tag, _ in shown.elements if re.fullmatch(r"h\d", tag)]
    assert heads[0] == "h1" and all(int(b[1]) <= int(a[1]) + 1 for a, b in itertools.pairwise(heads))
    assert all(given.get("scope") in ("col", "row") for given in shown.all("th"))
    assert all("aria-hidden" in svg or "aria-label" in svg or "viewbox" in svg for svg in shown.all("svg"))


def test_a_bound_below_chance_is_told_apart(make_run, page):
    rows = [bound(row, math.log(0.35) if row.name == "naive" else 2.0) for row in CHARTED]
    shown = page(make_run(result={"bounds": rows}))
    assert f"2 of {len(rows)} bounds on the test error are below 90%" in shown.text and "at most 35.00%" in shown.text
    assert len(shown.all("circle", "hollow")) == len(rows) - 2


def test_text_from_files_is_only_text(make_run, page):
    evil = '<script>alert("1")</script>'
    result = {
        "run": evil,
        "bounds": [bound(row, 1.0, reason=evil, terms={evil: 1.0}) for row in ROWS],
        "versions": {evil: evil},
        "layers": [evil],
        "prune": None,
        "sketch": None,
    }
    config = {"datamodule": evil, "model": evil, evil: evil}
    shown = page(make_run("a<b>&'", config=config, result=result), make_run(config={"datamodule": "$title"}))
    assert len(shown.all("script")) == 1 and not shown.all("b>&'") and evil in shown.text


def test_odd_numbers(make_run, page):
    odd = [math.inf, -math.inf, math.nan]
    result = {
        "bounds": [bound(row, odd[index % 3]) for index, row in enumerate(ROWS)],
        "margin": -math.inf,
        "d": 0.0,
        "test_error": {"unpruned": 0.0, "pruned": None},
    }
    folder = make_run(result=result)
    (folder / "epochs.csv").write_text(
        "epoch,margin,d,bounds/paper/theorem_5_2\n0,inf,nan,inf\n1,-inf,0,oops\n,1,1,1\n"
    )
    shown = page(folder)
    assert not shown.all("circle") and not shown.all("figure")
    assert "∞ →" in shown.text and "← −∞" in shown.text and "not a number" in shown.text
    assert not re.search(r'="[^"]*(nan|inf)%?"', shown.source)


@pytest.mark.parametrize("missing", ["config.yaml", "epochs.csv", "result.json"])
def test_a_file_is_missing(make_run, page, missing):
    folder = make_run()
    (folder / missing).unlink()
    shown = page(folder)
    assert ("Unfinished" in shown.text) == (missing == "result.json")
    assert ("There are no curves" in shown.text) == (missing == "epochs.csv")
    assert ("There is no config.yaml" in shown.text) == (missing == "config.yaml")


def test_what_a_run_did_not_measure(make_run, page):
    result = {"prune": None, "sketch": None, "test_error": {"unpruned": None}, "true_error": None, "versions": None}
    shown = page(make_run(result=result, epochs=0))
    assert "unknown" in shown.text and "Layer by layer" not in shown.text
    assert len(shown.all("circle")) == len(CHARTED)


def test_a_ladder_of_given_weights(make_run, page):
    shown = page(make_run(result={"weights": "there/mine.pt", "prune": None}, epochs=0))
    assert "The network in there/mine.pt, on digits" in shown.text and "exps/ladder.py" in shown.text


def test_rows_and_files_of_another_version(make_run, page):
    first = bound(ROWS[0], 1.0)
    shown = page(make_run(result={"bounds": [first, first | {"name": "gone"}]}))
    assert "gone" not in shown.text.split("config.yaml")[1]
    odd = make_run("odd", result={})
    for text, says in (("{", "is damaged"), ("[]", "another version"), ('{"run": 1}', "another version")):
        (odd / "result.json").write_text(text)
        assert says in page(odd).text
    (odd / "config.yaml").write_text("a: [")
    page(odd)


def test_folders_without_a_run(tmp_path):
    with pytest.raises(UserError, match="at least one run"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(UserError, match="holds no run: expected config"):
        write_report([tmp_path / "none"], tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_several_runs(make_run, page):
    grid = [(width, seed) for width in (64, 8, 16) for seed in (1, 2)]
    folders = [
        make_run(f"w{width}s{seed}", config={"ffn_hidden_dim": width, "seed": seed, "out_dir": f"o{seed}"})
        for width, seed in grid
    ]
    unfinished = make_run("late", config={"ffn_hidden_dim": 128}, result=None, epochs=1)
    shown = page(*folders, unfinished)
    assert "7 runs over ffn_hidden_dim and seed" in shown.text and "6 of 7 are finished" in shown.text
    # By size, not by name or as given.
    assert "ffn_hidden_dim: 8, 16, 64, 128" in shown.text
    links = [given["href"] for given in shown.all("a")]
    names = [given["id"] for _, given in shown.elements if "id" in given]
    assert links == [f"#{name}" for name in names] and len(set(names)) == 7
    assert "Against ffn_hidden_dim" in shown.text and "Against seed" not in shown.text
    assert [given["data-x"] for given in shown.all("figure")[:5]] == ['["8", "16", "64"]'] * 5
    assert len(shown.all("details", "run")) == 7
    # A run without its configuration makes no axes of all that the others have.
    assert "3 runs over ffn_hidden_dim" in page(make_run("bare", config=None), folders[0], folders[2]).text


def test_runs_that_differ_in_nothing_or_in_names(make_run, page):
    twins = make_run("one"), make_run("two")
    assert "All are finished" in page(*twins).text
    shown = page(*twins, make_run("three", config={"optimizer": "adam", "lr": 0.1}))
    assert "Against" not in shown.text and "optimizer: adam, –" in shown.text


def test_it_needs_nothing_from_outside(make_run, page):
    shown = page(make_run())
    assert not re.search(r"https?:|//[a-z]|@import|url\(", shown.source)
    assert not [given for _, given in shown.elements if {"src", "action"} & set(given)]
    policy = next(given["content"] for given in shown.all("meta") if "http-equiv" in given)
    assert policy.startswith("default-src 'none'")


def test_size_of_a_long_run(make_run, tmp_path):
    path = write_report([make_run(epochs=60)], tmp_path / "report.html")
    assert path.stat().st_size < 250_000


def test_a_failure_leaves_the_report_as_it_was(make_run, tmp_path, monkeypatch):
    target = tmp_path / "report.html"
    target.write_text("before")
    folder = make_run()

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("milkshake_mbp.reporting.report.page.write_atomically", full)
    with pytest.raises(OSError):
        write_report([folder], target)
    assert target.read_text() == "before" and sorted(tmp_path.iterdir()) == [folder, target]


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_cover_what_they_are_for(low, width):
    high = low + width
    ticks = nice_ticks(low, high)
    steps = [b - a for a, b in itertools.pairwise(ticks)]
    assert 2 <= len(ticks) <= 8 and min(steps) > 0
    assert ticks[0] <= low + 0.011 * steps[0] and high - 0.011 * steps[0] <= ticks[-1]


@given(st.floats(-12, 3), st.floats(0, 12))
def test_log_ticks_cover_what_they_are_for(power, decades):
    low, high = 10**power, 10 ** (power + decades)
    ticks = nice_ticks(low, high, log=True)
    assert 2 <= len(ticks) <= 14 and ticks == sorted(set(ticks))
    assert ticks[0] <= low * (1 + 1e-9) and high <= ticks[-1] * (1 + 1e-9)


def test_scale():
    assert Scale(-1, 3).place(1) == 50
    assert Scale(0.01, 1, log=True).place(0.1) == pytest.approx(50)
    assert not Scale(0.01, 1, log=True).drawable(0) and not Scale(0, 1).drawable(math.nan)


def test_runs_at_the_same_place_share_a_line_through_their_medians():
    x, values = [1, 1, 1, 2, 3], [0.0, 1.0, 10.0, math.inf, 4.0]
    drawn = plot("t", x, [Curve("a", values)], x_label="x", y_label="y")
    # Broken where a value is infinite, and a dot for each that is not.
    assert re.search(r'd="(M0 90M100 60)" class="line"', drawn) and drawn.count("h0") == 4 + 1
    assert "1 (0 to 10)" in drawn and "∞" in drawn
    assert plot("t", [1], [Curve("a", [math.inf])], x_label="x", y_label="y") is None


def test_markup_escapes_unless_told():
    assert tag("p", "<i>", Markup("<b></b>"), None, title='"', hidden=True, id=None) == (
        '<p title="&quot;" hidden>&lt;i&gt;<b></b></p>'
    )


@pytest.fixture
def browse(tmp_path):
    """The page as a browser makes it, after more script, in a frame of a phone's width; and what the console said."""
    if BROWSER is None:
        pytest.skip("no Chromium on PATH")

    def open_page(path, script):
        probe = f"<script>addEventListener('load', () => {{{script}}})</script></body>"
        inner = path.read_text(encoding="utf-8").replace("</body>", probe)
        # A window is no narrower than 500 pixels, a frame is.
        outer = tag("iframe", srcdoc=inner, width=360, height=2000)
        collect = "document.documentElement.dataset.found = document.querySelector('iframe').contentDocument"
        wrapper = tmp_path / "frame.html"
        wrapper.write_text(
            f"<!doctype html><meta charset=utf-8>{outer}"
            f"<script>onload = () => {{ {collect}.documentElement.dataset.found }}</script>",
            encoding="utf-8",
        )
        flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        more = "--disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=3000 --dump-dom"
        done = subprocess.run(
            [BROWSER, *flags.split(), *more.split(), f"--user-data-dir={tmp_path / 'profile'}", wrapper.as_uri()],
            capture_output=True,
            text=True,
            timeout=60,
        )
        found = re.search(r'<html data-found="([^"]*)"', done.stdout)
        assert found, done.stderr[-2000:]
        said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        return json.loads(found[1].replace("&quot;", '"')), said

    return open_page


def test_a_browser_draws_it(make_run, tmp_path, browse):
    folders = [make_run(f"w{width}", config={"ffn_hidden_dim": width}) for width in (8, 16)]
    path = write_report(folders, tmp_path / "report.html")
    found, said = browse(
        path,
        """
        const all = selector => [...document.querySelectorAll(selector)];
        const root = document.documentElement, found = {drawn: root.dataset.drawn, figures: all("figure").length};
        all("details").forEach(each => each.open = true);
        found.overflow = root.scrollWidth - innerWidth;
        found.dots = all("circle").filter(dot => dot.getBoundingClientRect().width > 5).length;
        found.lines = all(".curve:not(.off) .line").filter(line => line.getTotalLength() > 0).length;
        const chart = all(".run .chart")[0], plot = chart.querySelector(".plot"), box = plot.getBoundingClientRect();
        plot.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + 0.45 * box.width, clientY: box.top}));
        found.hover = [...chart.querySelectorAll("output")].map(each => each.textContent);
        plot.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowLeft"}));
        found.key = [...chart.querySelectorAll("output")].map(each => each.textContent);
        chart.querySelector("input").click();
        found.off = chart.querySelector(".curve").getBoundingClientRect().width;
        root.dataset.found = JSON.stringify(found);
        """,
    )
    assert said == []
    assert found["drawn"] == str(found["figures"]) == "15"
    assert found["dots"] == 2 * (len(CHARTED) + 2)
    assert found["lines"] > 0 and found["overflow"] <= 0
    assert found["hover"] == ["2", "0"] and found["key"] == ["1", "-1"] and found["off"] == 0
