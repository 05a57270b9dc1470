import csv
import io
import json
import math

import pytest
from rich.console import Console

from milkshake_mbp.callbacks import BoundsCallback, PruneCallback, SketchCallback
from milkshake_mbp.framework.datamodules import Digits
from milkshake_mbp.framework.main import main
from milkshake_mbp.framework.models import FFN
from milkshake_mbp.reporting.ladder import export_ladder, ladder_table, sections
from milkshake_mbp.reporting.words import show_log
from milkshake_mbp.runs.summary import ladder_numbers
from milkshake_mbp.theory.bounds import CONVENTIONS, ROWS


@pytest.fixture
def result(configure):
    args = configure(max_epochs=5)
    bounds = BoundsCallback()
    callbacks = [bounds, PruneCallback(), SketchCallback()]
    main(args, FFN, Digits, callbacks=callbacks, verbose=False)
    return json.loads(json.dumps(ladder_numbers(bounds.report.measured)))


def shown():
    """Of a chain of Linear layers: not what a code, a search or a convolution must be there for."""
    absent = {"coded", "magnitudes", "fourier", "operator_scales", "patches"}
    return [row for row in ROWS if not absent & set(row.needs)]


def test_a_trained_network_has_every_row_that_is_measured(result):
    found = [(bound["convention"], bound["name"]) for bound in result["bounds"]]
    assert sorted(found) == sorted((row.convention, row.name) for row in shown())


def test_sections_are_sorted_and_explain_themselves(result):
    for section, convention in zip(sections(result), CONVENTIONS, strict=True):
        bounds = sorted((b for b in result["bounds"] if b["convention"] == convention), key=lambda b: b["log_value"])
        assert [line.log_value for line in section.lines] == [show_log(bound["log_value"]) for bound in bounds]
        for line, bound in zip(section.lines, bounds, strict=True):
            assert (section.notes[line.note - 1] if line.note else "") == bound["reason"]
        assert len(set(section.notes)) == len(section.notes)


def test_what_a_line_means(result):
    result["num_classes"] = 4
    values = {
        0.5: "error ≤ 50.00%",
        0.75: "vacuous (≥ 75%)",
        0.9: "vacuous (≥ 75%)",
        1.0: "vacuous (≥ 100%)",
    }
    for value, meaning in values.items():
        result["bounds"] = [
            {
                "name": "dense",
                "convention": "rigorous",
                "log_value": math.log(value),
                "reason": "",
                "holds_with": 0.975,
                "claimed": None,
                "vacuous": value >= 0.75,
                "trivial": value >= 1,
            }
        ]
        ((line,),) = [section.lines for section in sections(result)]
        assert (line.meaning, line.holds) == (meaning, "97.5%")


def test_the_terminal_shows_every_bound_and_what_it_stands_on(result):
    console = Console(file=io.StringIO(), width=120)
    console.print(ladder_table(result, CONVENTIONS))
    text = console.file.getvalue()
    for row in shown():
        assert row.label in text
    assert "[1] Lemma B.2 needs" in text and "98.7%" in text and "claims 95%" in text


def test_exports(result, tmp_path):
    table, markdown, latex = export_ladder(result, tmp_path)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["log_value"]) for row in rows] == [bound["log_value"] for bound in result["bounds"]]
    assert [json.loads(row["terms"]) for row in rows] == [bound["terms"] for bound in result["bounds"]]
    lines = [line for line in markdown.read_text().splitlines() if line.startswith("|")]
    assert len(lines) == len(shown()) + 2 * len(CONVENTIONS)
    text = latex.read_text()
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == len(CONVENTIONS)
    # Nothing that pdflatex would not typeset: plain ASCII, and no bare special character.
    assert text.isascii()
    body = text.partition("\n")[2]
    assert all(body[i - 1] == "\\" for i, c in enumerate(body) if c in "%#")
    for line in body.splitlines():
        if line.endswith(r"\\") and "&" in line:
            columns = line.replace(r"\&", "").count("&")
            assert columns in (2, 3, 4)
