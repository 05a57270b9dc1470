import json

import pytest
import wandb
from rich.console import Console

from milkshake_mbp.callbacks import BoundsCallback
from milkshake_mbp.experiment.run import run
from milkshake_mbp.framework import logging
from milkshake_mbp.theory.bounds import CONVENTIONS, ROWS
from tests.wandb_file import offline_runs

QUIET = Console(quiet=True)


pytestmark = pytest.mark.usefixtures("offline_wandb")


@pytest.fixture
def settings(configure, tmp_path):
    return configure(wandb=True, wandb_dir=str(tmp_path / "wandb"), max_epochs=3, experiment="few")


def test_what_is_on_file(settings, tmp_path):
    settings.figures = True
    files, result = run(settings, QUIET)
    (file,) = offline_runs(tmp_path / "wandb")
    (opened,) = file.of("run")
    assert (opened.display_name, opened.run_group, opened.run_id) == (files.folder.name, "few", files.wandb.read_text())
    assert file.config["lr"] == settings.lr

    defined = {record.name or record.glob_name: record for record in file.of("metric")}
    assert defined["*"].step_metric == "epoch"  # the last word, after Lightning's
    hidden = {name for name, record in defined.items() if record.options.hidden}
    bounds = {f"bounds/{row.convention}/{row.name}" for row in ROWS}
    assert hidden >= bounds and all(defined[name].step_metric == "epoch" for name in bounds)
    logged = [row for row in file.history if "margin" in row]
    assert [row["epoch"] for row in logged] == [0, 1, 2]
    for key in ("margin", "d", "chi", "true_error"):
        assert all(key in row for row in logged) and key not in hidden

    drawn = {key: value for key, value in file.config.items() if "visualize" in key}
    for key in (*(f"_wandb.visualize.bounds/{convention}" for convention in CONVENTIONS), "_wandb.visualize.errors"):
        assert drawn[key]["panel_config"]["panelDefId"] == "wandb/lineseries/v0"
    assert "_wandb.visualize.sparsity" in drawn
    lines = table(tmp_path, "bounds/leading_table")
    assert {label for epoch, label, value in lines["data"]} <= {r.label for r in ROWS if r.convention == "leading"}
    assert {epoch for epoch, label, value in lines["data"] if label == "Theorem 5.2"} == {0, 1, 2}

    ladder = table(tmp_path, "ladder")
    assert ladder["columns"][:4] == ["kind", "bound", "ln", "value"] and len(ladder["data"]) == len(result["bounds"])
    infinite = [row for row in ladder["data"] if row[3] == "∞"]
    assert infinite and all(row[2] is None for row in infinite)

    for bound in result["bounds"]:
        value = file.summary[f"bounds/{bound['convention']}/{bound['name']}"]
        assert value == (bound["log_value"] if abs(bound["log_value"]) < float("inf") else None)
    expected = {key: result[key] for key in ("margin", "d", "chi", "true_error", "seed", "epochs")}
    expected |= {"test_error": result["test_error"]["unpruned"], "pruned_test_error": result["test_error"]["pruned"]}
    expected["prune/sparsity"] = result["prune"]["sparsity"]
    assert {key: file.summary[key] for key in expected} == expected

    (artifact,) = [record for record in file.of("artifact") if record.type == "results"]
    assert artifact.name == files.folder.name
    paths = {entry.path for entry in artifact.manifest.contents}
    assert paths >= {"figures/epochs.pdf", "figures/epochs.png", "ladder.csv", "ladder.md", "ladder.tex"}
    assert paths >= {"report.html", "result.json", "config.yaml", "epochs.csv"}
    assert file.of("exit")[0].exit_code == 0


def table(folder, key):
    """The latest of that name."""
    paths = (folder / "wandb").rglob(f"{key.rpartition('/')[2]}_*.table.json")
    return json.loads(max(paths, key=lambda path: int(path.name.split("_")[-2])).read_text())


@pytest.mark.long
def test_a_run_that_goes_on_is_still_one_run(settings, monkeypatch, tmp_path):
    measure = BoundsCallback._measure

    def interrupt(self, module, train, test, epoch, stability):
        if epoch == 3 and stability:
            raise KeyboardInterrupt
        return measure(self, module, train, test, epoch, stability)

    with monkeypatch.context() as patch:
        patch.setattr(BoundsCallback, "_measure", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(settings, QUIET)
    run(settings, QUIET)
    first, second = offline_runs(tmp_path / "wandb")
    assert first.of("run")[0].run_id == second.of("run")[0].run_id
    assert [file.of("exit")[0].exit_code for file in (first, second)] == [1, 0]
    assert [row["epoch"] for row in second.history if "margin" in row] == [2]
    settings.rerun = True
    run(settings, QUIET)
    ids = {file.of("run")[0].run_id for file in offline_runs(tmp_path / "wandb")}
    assert len(ids) == 2


@pytest.mark.long
def test_what_an_agent_asks_for_is_logged_though_it_is_finished(settings, monkeypatch, tmp_path):
    settings.wandb = False
    _, result = run(settings, QUIET)
    settings.wandb = True
    run(settings, QUIET)
    assert not offline_runs(tmp_path / "wandb")
    monkeypatch.setenv("WANDB_SWEEP_ID", "few")
    run(settings, QUIET)
    (file,) = offline_runs(tmp_path / "wandb")
    assert [row["epoch"] for row in file.history if "margin" in row] == [0, 1, 2]
    assert file.summary["true_error"] == result["true_error"]


def test_offline_where_the_server_does_not_answer(settings, monkeypatch, tmp_path, capsys):
    def refuse(mode="online", init=wandb.init, **options):
        if mode == "online":
            raise wandb.errors.CommError("connection refused\nConsider increasing the init_timeout setting")
        return init(mode=mode, **options)

    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(wandb, "login", lambda **options: True)
    monkeypatch.setattr(wandb, "init", refuse)
    logging._say_offline.cache_clear()
    run(settings, QUIET)
    assert len(offline_runs(tmp_path / "wandb")) == 1
    said = capsys.readouterr().err
    assert said.count("connection refused") == 1 and "wandb sync" in said and str(tmp_path / "wandb") in said
