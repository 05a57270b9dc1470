"""Runs read from their folders, ranked, and written down."""

import csv
import json
import math

import pytest

from milkshake_mbp.errors import UserError
from milkshake_mbp.experiment.ranking import export_rankings, find_networks, rank_networks
from milkshake_mbp.experiment.ranking.figures import draw_scatter, draw_sign_errors, off_scale
from milkshake_mbp.experiment.ranking.report import write_ranking_report
from milkshake_mbp.experiment.ranking.table import interval
from milkshake_mbp.experiment.run import run
from milkshake_mbp.theory.ranking import Estimate

from .helpers import write_grid, write_run


@pytest.fixture
def grid(tmp_path):
    write_grid(tmp_path / "out")
    return tmp_path / "out"


def entry(study, target, row):
    (found,) = [entry for entry in study.entries if (entry.target, entry.row) == (target, row)]
    return found.ranking


def test_hyperparameters_are_the_keys_in_which_the_runs_differ(grid):
    for number, keys in enumerate(({"seed": 2}, {"nin_width": 96}, {"out_dir": "/elsewhere"}, {"experiment": "b"})):
        write_run(grid / f"again{number}", error=0.1, measure=1.0, **keys)
    networks = find_networks([str(grid)])
    assert set(networks.values) == {"ffn_hidden_dim", "ffn_num_layers", "lr", "prune_d"}
    assert networks.values["lr"] == [0.01, 0.1] or networks.values["lr"] == [0.1, 0.01]
    # Two strengths of one training are one draw of a bootstrap; other seeds are not.
    assert len(networks.kept) == 20 and len(set(networks.design.clusters)) == 9


def test_paths_are_runs_sweeps_folders_and_patterns(grid):
    (grid / "sweep").mkdir()
    trials = [{"run": f"run{index:02d}"} for index in (0, 1, 2, 99)]
    (grid / "sweep" / "sweep.json").write_text(json.dumps({"trials": trials}))
    names = [network.name for network in find_networks([str(grid / "sweep")]).kept]
    assert names == ["run00", "run01", "run02"]
    assert find_networks([str(grid / "sweep")]).set_aside == (("run99", "it has not finished"),)
    once = [str(grid / "run0*"), str(grid / "run00"), str(grid / "run01")]
    assert len(find_networks(once).kept) == 10
    with pytest.raises(UserError, match="absent does not exist"):
        find_networks([str(grid / "absent")])
    (grid / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no run"):
        find_networks([str(grid / "empty")])
    with pytest.raises(UserError, match="a ranking needs 3 networks or more, got 1 of 1"):
        find_networks([str(grid / "run00")])


def test_what_did_not_fit_its_training_set_is_set_aside_and_named(grid):
    write_run(grid / "slow", error=0.4, measure=0.1, train_loss=0.2)
    write_run(grid / "free", error=0.3, measure=0.1, until_loss=math.inf, train_loss=0.5)
    (grid / "begun").mkdir()
    (grid / "begun" / "config.yaml").write_text("model: ffn\n")
    networks = find_networks([str(grid)])
    assert dict(networks.set_aside) == {
        "slow": "its training loss is 0.2, above 0.01",
        "begun": "it has not finished",
    }
    asked = dict(find_networks([str(grid)], until_loss=0.3).set_aside)
    assert set(asked) == {"free", "begun"} and asked["free"] == "its training loss is 0.5, above 0.3"


def test_the_row_that_is_the_test_error_is_no_measure(grid):
    rows = find_networks([str(grid)]).rows
    assert ("paper", "theorem_5_2") in rows and ("rigorous", "test_set") not in rows


def test_a_measure_that_orders_as_the_error_ranks_it(grid):
    study = rank_networks(find_networks([str(grid)]), resamples=50)
    assert study.targets == ["test_error", "gap", "pruned_test_error"]
    theorem = entry(study, "test_error", ("paper", "theorem_5_2"))
    assert theorem.tau.value == theorem.mean_psi.value == pytest.approx(1)
    assert theorem.psi["prune_d"].reason == "the target is the same along it"
    # After pruning the strength matters, of which this row knows nothing.
    pruned = entry(study, "pruned_test_error", ("paper", "theorem_5_2"))
    assert pruned.psi["prune_d"].reason == "the measure is the same along it" and pruned.mean_psi.value < 0.9
    size = entry(study, "test_error", ("measure", "params"))
    assert not size.tau_equal_size.defined and not size.psi["lr"].defined and size.psi["ffn_hidden_dim"].value == 1


def test_the_gap_is_test_error_less_training_error(grid):
    write_run(grid / "more", error=0.5, measure=0.1, train_error=0.45)
    (network,) = [network for network in find_networks([str(grid)]).kept if network.name == "more"]
    assert network.targets["gap"] == pytest.approx(0.05)


def test_tables_figures_and_page_hold_every_row_and_say_what_is_undefined(grid, tmp_path):
    write_run(grid / "slow", error=0.4, measure=0.1, train_loss=0.2)
    study = rank_networks(find_networks([str(grid)]), resamples=30, min_effective_sample=3)
    table, markdown, latex = export_rankings(study, tmp_path / "ranking")
    with table.open(newline="") as file:
        records = list(csv.DictReader(file))
    keys = {(record["target"], record["convention"], record["name"]) for record in records}
    assert len(keys) == 3 * 3
    undefined = [r for r in records if r["name"] == "params" and r["estimator"] == "tau_equal_size"]
    assert all(r["value"] == "" and r["reason"] == "the measure is the same for equal sizes" for r in undefined)
    found = {(r["estimator"], r["axis"]): r for r in records if r["name"] == "theorem_5_2" and r["target"] == "gap"}
    assert float(found["tau", ""]["value"]) == pytest.approx(1) and float(found["tau", ""]["low"]) <= 1
    assert float(found["sign_error", "lr"]["value"]) == 0
    text = markdown.read_text()
    assert "slow: its training loss is 0.2" in text and "| Theorem 5.2 | 1.00 [1.00, 1.00] |" in text
    assert latex.read_text().isascii() and latex.read_text().count(r"\begin{tabular}") == 3
    figures = [*draw_sign_errors(study, tmp_path), draw_scatter(study, "gap", tmp_path)]
    assert all(figure.stat().st_size > 1000 for figure in figures) and len(figures) == 3
    page = write_ranking_report(study, tmp_path / "report.html").read_text()
    assert page.count("<figure>") == 9 and "slow: its training loss is 0.2" in page and "<circle" in page


def test_without_an_environment_nothing_is_drawn_and_the_reason_is_kept(grid, tmp_path):
    study = rank_networks(find_networks([str(grid)]), resamples=10, min_effective_sample=1000)
    worst = entry(study, "gap", ("paper", "theorem_5_2")).worst_sign_error
    assert not worst.defined and worst.reason == "no environment has an effective sample of 1000"
    assert draw_sign_errors(study, tmp_path) == []


def test_numbers_as_they_are_read():
    assert interval(Estimate(-0.001, -0.25, 0.5)) == "0.00 [−0.25, 0.50]"
    assert interval(Estimate(math.nan, reason="no pairs")) == "–" and interval(Estimate(0.5)) == "0.50"
    assert off_scale([1.0, math.inf, 2.0, -math.inf]) == pytest.approx([1, 2.1, 2, 0.9])


def test_runs_of_the_framework_are_ranked(configure):
    """From training to ranking: what a run leaves is what the ranking reads."""
    for width in (8, 16, 24):
        run(configure(ffn_hidden_dim=width, until_loss=1.0, max_epochs=3, lr=0.3))
    networks = find_networks([configure().out_dir], until_loss=5)
    assert set(networks.values) == {"ffn_hidden_dim"} and len(networks.kept) == 3
    assert all(network.num_test == 360 and network.stopping[1] == 1.0 for network in networks.kept)
    ranking = entry(rank_networks(networks, resamples=5), "test_error", ("measure", "params"))
    assert ranking.num_networks == 3 and ranking.tau.defined


def test_measures_by_magnitude_are_there_if_asked_for(configure):
    """They take a search of their own, so that a run has them only by a key."""
    names = {"pacbayes_mag_init", "pacbayes_mag_orig", "pacbayes_mag_flatness"}
    _, result = run(configure(magnitude_flatness=True, max_epochs=3))
    rows = {row["name"]: row for row in result["bounds"]}
    sigma = rows["pacbayes_mag_flatness"]["terms"]["sigma"]
    assert rows["pacbayes_mag_flatness"]["log_value"] == pytest.approx(-2 * math.log(sigma))
    rest = math.log(result["n"] / sigma) + 10
    assert all(math.exp(rows[name]["log_value"]) > rest for name in ("pacbayes_mag_init", "pacbayes_mag_orig"))
    _, plain = run(configure(max_epochs=3))
    assert not names & {row["name"] for row in plain["bounds"]}
    assert [row for row in result["bounds"] if row["name"] not in names] == plain["bounds"]
