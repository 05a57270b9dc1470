import csv
import math
import re

from milkshake_mbp.reporting.tables import compare, export_table, find_runs, notes, number

from .helpers import write_run


def cells(path):
    """A Markdown file's lines of cells by (label, kind)."""
    found, label = {}, ""
    for line in path.read_text().splitlines():
        if line.startswith("|"):
            first, kind, *rest = (cell.strip() for cell in line.strip("|").split("|"))
            label = first or label
            found[label, kind] = rest
    return found


def test_markdown(mnist, tmp_path):
    comparison = compare(mnist, "mnist", [500, 784, 1000, 1500])
    path, _, _ = export_table(comparison, tmp_path / "table1", label="Table 1", title="title", remarks=["a remark"])
    found = cells(path)
    assert path.name == "table1.md" and path.read_text().startswith("## Table 1: title\n")
    assert found["natural log", ""] == ["width 500", "width 784", "width 1000", "width 1500"]
    assert found["Neyshabur 2015", "here"] == ["not run", "23.00", "25.00", "not run"]
    assert found["Neyshabur 2015", "range"] == ["", "22.90 to 23.50", "", ""]
    assert found["Neyshabur 2015", "paper"] == ["22.29", "23.56", "24.42", "25.12"]
    assert found["Neyshabur 2015", "difference"] == ["", "−0.56", "+0.58", ""]
    assert found["Bartlett 2017", "here"][2] == "∞" and found["Bartlett 2017", "difference"][2] == "∞"
    assert found["Ours (Theorem 5.2)", "here"][1] == "3.750" and found["Ours (Theorem 5.2)", "paper"][1] == "3.77"
    assert ("Ours (Theorem 5.2)", "range") not in found
    # ln sqrt(Σ N_l ln² p_l / n): a formula, so that it is there without a run.
    assert found["ln of Theorem 5.2, nothing pruned", "here"] == ["3.327", "3.755", "4.006", "4.432"]
    assert found["Smallest training margin", "here"] == ["not run", "2.00", "−1.00", "not run"]
    assert found["Searched d", "here"] == ["not run", "4.0e−5", "0", "not run"]
    assert found["Weights pruned at it", "here"] == ["not run", "unknown", "unknown", "not run"]
    assert found["Epochs", "here"] == ["not run", "60", "20", "not run"]
    assert "- a remark" in path.read_text()


def test_csv_has_the_numbers(mnist, tmp_path):
    comparison = compare(mnist, "mnist", [500, 784])
    _, _, path = export_table(comparison, tmp_path, label="Table 1", title="title", remarks=[])
    with path.open(newline="") as file:
        rows = {(row["quantity"], row["width"]): row for row in csv.DictReader(file)}
    assert len(rows) == 10 * 2
    row = rows["neyshabur_2015", "784"]
    assert [float(row[name]) for name in ("median", "low", "high", "paper")] == [23.0, 22.9, 23.5, 23.56]
    assert (row["runs"], row["seeds"], row["dataset"]) == ("3", "1 2 3", "mnist")
    hole = rows["neyshabur_2015", "500"]
    assert (hole["median"], hole["difference"], hole["runs"], float(hole["paper"])) == ("", "", "0", 22.29)


def test_latex_is_ascii_and_rectangular(mnist, tmp_path):
    comparison = compare(mnist, "mnist", [500, 784, 1000])
    remarks = [*notes(comparison), "50% & more_of #1"]
    _, path, _ = export_table(comparison, tmp_path, label="Table 1", title="title of it", remarks=remarks)
    text = path.read_text()
    assert text.isascii()
    assert r"\caption{Title of it. " in text and r"50\% \& more\_of \#1" in text
    assert r"$4.0\cdot 10^{-5}$" in text and r"$\infty$" in text and "$-$0.56" in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) > 20 and {len(re.findall(r"(?<!\\)&", line)) for line in rows} == {4}
    assert text.count(r"\begin{tabular}{llrrr}") == text.count(r"\end{tabular}") == 1


def test_digits_have_nothing_of_the_paper(tmp_path):
    write_run(tmp_path / "runs", datamodule="digits")
    comparison = compare(find_runs([str(tmp_path / "runs")]), "digits", [784])
    assert not comparison.has_paper and "paper" not in " ".join(notes(comparison))
    path, _, _ = export_table(comparison, tmp_path, label="Table 2", title="quick", remarks=[])
    assert {kind for _, kind in cells(path)} == {"", "here"} | {cell for _, cell in cells(path) if "--" in cell}


def test_numbers_as_written():
    assert [number(value, ".2f", "hole") for value in (None, -1.5, math.inf, -math.inf)] == ["hole", "−1.50", "∞", "−∞"]
    assert [number(value, "#.3g") for value in (2.0, 123.0)] == ["2.00", "123"]
    assert [number(value, ".1e") for value in (0, 4.26e-5, 3.0)] == ["0", "4.3e−5", "3.0e0"]
