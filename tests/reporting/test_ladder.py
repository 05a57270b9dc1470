import csv
import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from milkshake_mbp.callbacks import BoundsCallback, PruneCallback, SketchCallback
from milkshake_mbp.framework.datamodules import Digits
from milkshake_mbp.framework.main import main
from milkshake_mbp.framework.models import FFN
from milkshake_mbp.reporting.ladder import export_ladder, ladder_table, next_step, sections, verdict
from milkshake_mbp.reporting.terminal import Fitted
from milkshake_mbp.reporting.words import show_log
from milkshake_mbp.runs.summary import ladder_numbers
from milkshake_mbp.theory.bounds import CONVENTIONS, ROWS

COMPARED = {"theorem_5_2", "neyshabur_2015", "neyshabur_2017", "bartlett_2017"}


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
    console.print(ladder_table(result, brief=False))
    text = console.file.getvalue()
    for row in shown():
        assert row.label in text
    assert "[1] Lemma B.2 needs" in text and "98.7%" in text and "claims 95%" in text
    words = " ".join(text.split())
    assert "(erratum E14)" in words and "E14: The condition of the perturbation lemma" in words
    assert "docs/errata.md" in words


def test_in_brief_it_shows_what_matters_and_counts_the_rest(result):
    best = min((b for b in result["bounds"] if b["convention"] == "leading"), key=lambda b: b["log_value"])
    result["bounds"] = [
        {**b, "vacuous": False} if (b["convention"], b["name"]) == ("leading", "gouk_2021") else b
        for b in result["bounds"]
    ]
    (section,) = sections(result, ["leading"], brief=True)
    labels = {row.label for row in ROWS if (row.convention, row.name) in {("leading", name) for name in COMPARED}}
    shown_labels = [line.label for line in section.lines]
    assert shown_labels[0] == next(row.label for row in ROWS if (row.convention, row.name) == ("leading", best["name"]))
    assert {*labels, "Gouk 2021"} <= set(shown_labels)
    whole = next(sections(result, ["leading"]))
    assert [line.label for line in whole.lines[:3]] == shown_labels[:3]
    assert len(section.lines) + section.hidden == len(whole.lines) and section.hidden > 5
    # Notes are those of the rows that are shown, numbered from 1.
    assert {line.note for line in section.lines} - {0} == set(range(1, len(section.notes) + 1))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_terminal_breaks_no_word(result, width):
    console = Console(file=io.StringIO(), width=width)
    console.print(ladder_table(result, brief=True))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    for whole in ("vacuous (≥ 100%)", "Neyshabur 2017", "Bartlett 2017", "meaning", "--all"):
        assert whole in text
    assert ("Too narrow for value" in text) == (width == 60)


def test_the_verdict_tells_what_needs_the_test_set(result):
    rows = [
        {"name": name, "convention": "rigorous", "log_value": math.log(value), "holds_with": 0.987, "vacuous": False}
        for name, value in (("test_set", 0.04999), ("naive", 0.39999))
    ]
    result["bounds"] = rows
    both = verdict(result)
    assert "2 of 2" in both and "at most 5.00%, with probability 98.7%" in both and "at most 40.00%" in both
    result["bounds"] = [rows[0], {**rows[1], "vacuous": True}]
    assert "1 of 2" in verdict(result) and verdict(result).endswith("from the training samples are vacuous.")
    result["bounds"] = [{**row, "vacuous": True} for row in rows]
    assert verdict(result).startswith("All 2 bounds on the test error are vacuous")


def test_what_does_not_apply_is_not_quoted(result):
    proved = {"convention": "rigorous", "holds_with": 0.987, "claimed": None, "reason": "", "trivial": False}
    rows = [
        {**proved, "name": name, "log_value": math.log(value), "vacuous": False, "applies": applies}
        for name, value, applies in (("naive", 0.1, False), ("dense", 0.5, True))
    ]
    leading = {**rows[0], "convention": "leading", "name": "theorem_5_2", "holds_with": None, "claimed": 0.95}
    result["bounds"] = [*rows, leading]
    assert "10.00%" not in (words := verdict(result)) and "at most 50.00%" in words
    assert words.startswith("1 of 3") and "2 more are below it, but their conditions fail" in words
    result["bounds"] = [rows[0], leading]
    assert verdict(result).startswith("None of 2") and "10.00%" not in verdict(result)
    assert {line.meaning for section in sections(result) for line in section.lines} == {"no guarantee"}


def test_what_to_do_next_can_be_typed(configure):
    words = next_step(configure(datamodule="digits")).splitlines()[1].split()
    assert words[:2] == ["python", "exps/certificate.py"] and Path(words[3]).is_file()
    assert "certificate.py --help" in next_step(configure(datamodule="digits_of_mine"))


def test_a_table_leaves_columns_out_rather_than_break_words():
    table = Fitted(
        ["name", "first", "second"], [["a long name of a row", "123456", "7"]], ["first", "second"], (), ["first"]
    )
    texts = []
    for width in (60, 33):
        console = Console(file=io.StringIO(), width=width)
        console.print(table)
        texts.append(console.file.getvalue())
    assert "123456" in texts[0] and "Too narrow" not in texts[0]
    assert "123456" not in texts[1] and "Too narrow for first." in texts[1] and "a long name of a row" in texts[1]


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
