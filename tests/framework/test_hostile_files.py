"""Files of weights and data that somebody made to do harm: refused in one line, before they take time or memory."""

import argparse
import csv
import io
import json
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from milkshake_mbp.errors import UserError
from milkshake_mbp.files import write_csv
from milkshake_mbp.framework.checkpoints import read_weights
from milkshake_mbp.framework.cli import verdict
from milkshake_mbp.framework.datamodules.arrays import Arrays
from milkshake_mbp.reporting.diagnostics import _draw_normality
from milkshake_mbp.reporting.ladder import _escape_markdown, escape_latex, left_out_lines
from milkshake_mbp.reporting.report.markup import tag

HARMLESS = [
    "[red]x[/x]",
    "<script>alert(1)</script>",
    r"\input{/etc/passwd} 50% #1 $x$ a_b {",
    "=cmd|' /C calc'!A0",
    "é—ü",
]
UNPRINTABLE = ["a\x1b]0;title\x07", "a\x1b[2J", "a\nb", "a\rb", "a\x00", "a\u202eb", "a\x9b2J", "x" * 600]


def saved(path, content):
    torch.save(content, path)
    return path


def refused(path, words):
    with pytest.raises(UserError, match=words) as refusal:
        read_weights(path)
    line, status = verdict(refusal.value)
    assert line.isprintable() and len(line) < 500 and status == 2


@pytest.mark.parametrize("name", HARMLESS)
def test_a_name_is_a_name(tmp_path, name):
    state = {f"{name}.weight": torch.ones(2, 2)}
    save_file(state, tmp_path / "w.safetensors")
    assert read_weights(tmp_path / "w.safetensors").keys() == state.keys()
    assert read_weights(saved(tmp_path / "w.pt", state)).keys() == state.keys()


@pytest.mark.parametrize("name", UNPRINTABLE)
def test_what_cannot_be_printed_is_no_name(tmp_path, name):
    save_file({f"{name}.weight": torch.ones(2, 2)}, tmp_path / "w.safetensors")
    refused(tmp_path / "w.safetensors", "is no name")
    refused(saved(tmp_path / "w.pt", {f"{name}.weight": torch.ones(2)}), "is no name")


@pytest.mark.parametrize("name", UNPRINTABLE[:-1])
def test_messages_show_what_a_file_says_as_text(tmp_path, name):
    line, _ = verdict(UserError(f"found {name}"))
    assert line.isprintable()
    # Keys of a checkpoint that is no network come up in the message.
    refused(saved(tmp_path / "w.pt", {name: 1}), "found")


def test_names_in_reports_are_text(tmp_path):
    for name in HARMLESS:
        assert "<script" not in tag("td", name)
        assert not any(c in escape_latex(name).replace(r"\%", "").replace(r"\#", "").replace(r"\&", "") for c in "%#&")
    assert escape_latex(r"\input{x}") == r"\textbackslash{}input\{x\}"
    path = write_csv(tmp_path / "t.csv", [{name: name for name in HARMLESS}])
    with path.open(newline="") as file:
        heads, cells = csv.reader(file)
    assert heads == cells and not any(cell.startswith("=") for cell in cells)


@pytest.mark.parametrize("name", [*HARMLESS, r"$\nothing{$", "$$"])
def test_names_in_figures_are_no_formulas(name):
    figure = _draw_normality([name], [torch.randn(20, 20, generator=torch.Generator().manual_seed(0))])
    figure.savefig(io.BytesIO())
    figure.draw_without_rendering()
    assert figure.axes[0].get_title().replace(r"\$", "$") == name


def test_names_in_markdown_are_no_markup():
    (line,) = left_out_lines({"left_out": {"layer <img src=x> [a](http://b) `c`": ["row"]}})
    assert r"\<img src=x> [a\]\(http://b) \`c\`" in _escape_markdown(line)


def test_a_safetensors_header_has_a_limit(tmp_path):
    for size in (1 << 62, (1 << 24) + 1):
        path = tmp_path / "w.safetensors"
        path.write_bytes(struct.pack("<Q", size) + b"{" * 1000)
        refused(path, "header of more than")
    # A tensor that its bytes do not hold.
    header = json.dumps({"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    refused(path, "damaged")


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_a_tensor_of_repeated_numbers_is_not_made(tmp_path):
    wide = torch.ones(1).expand(1 << 20, 1 << 20)
    refused(saved(tmp_path / "w.pt", {"0.weight": wide}), "every number of 0.weight")
    assert read_weights(saved(tmp_path / "v.pt", {"0.weight": torch.ones(1).expand(9, 9)}))["0.weight"].shape == (9, 9)
    sparse = torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (1 << 30, 1 << 30))
    refused(saved(tmp_path / "s.pt", {"0.weight": sparse}), "every number of 0.weight")
    refused(saved(tmp_path / "m.pt", {"0.weight": torch.ones(2, 2, device="meta")}), "every number of 0.weight")


def test_a_checkpoint_does_not_inflate(tmp_path):
    whole = saved(tmp_path / "w.pt", {"0.weight": torch.zeros(1000, 1000)})
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(tmp_path / "z.pt", "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert (tmp_path / "z.pt").stat().st_size < 20_000
    refused(tmp_path / "z.pt", "is compressed")


def nested(depth, width):
    """A dictionary of `width`^`depth` ways to its innermost, which is one small object."""
    inner = {"nothing": 0}
    for _ in range(depth):
        inner = {f"{index}": inner for index in range(width)}
    return inner


def test_what_refers_to_one_thing_often_has_an_end(tmp_path):
    refused(saved(tmp_path / "w.pt", nested(40, 2)), "parts")
    refused(saved(tmp_path / "d.pt", nested(200, 1)), "within one another")
    circle = {}
    circle["self"] = circle
    refused(saved(tmp_path / "c.pt", circle), "within one another")
    assert read_weights(saved(tmp_path / "l.pt", {"losses": [0.5] * 100_000, "model": {"0.weight": torch.ones(2, 2)}}))


def arrays(path):
    return Arrays(argparse.Namespace(arrays_path=str(path), data_dir="data", batch_size=16, val_split=0, seed=0))


def zipped(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def npy(array, shape=None):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array)
    if shape is None:
        return buffer.getvalue()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return header.getvalue() + bytes(16)


def test_arrays_have_a_limit(tmp_path, monkeypatch):
    good = {"x_train": npy(np.ones((4, 3), dtype=np.float32)), "y_train": npy(np.array([0, 1, 0, 1]))}
    good |= {"x_test": good["x_train"], "y_test": good["y_train"]}
    assert arrays(zipped(tmp_path / "a.npz", good)).load(True)[0].shape == (4, 3)
    claims = zipped(tmp_path / "b.npz", good | {"x_train": npy(np.ones(1), (1 << 30, 1 << 20))})
    with pytest.raises(UserError, match="x_train is damaged"):
        arrays(claims).load(True)
    with pytest.raises(UserError, match="pickled arrays are refused"):
        arrays(zipped(tmp_path / "c.npz", good | {"x_train": b"\x93NUMPY\x09\x00" + bytes(60)})).load(True)
    monkeypatch.setattr("milkshake_mbp.framework.datamodules.arrays._ALWAYS", 1 << 10)
    bomb = zipped(tmp_path / "d.npz", good | {"x_train": npy(np.zeros((1 << 16, 4), dtype=np.float32))})
    with pytest.raises(UserError, match=r"inflates from .* 100 times"):
        arrays(bomb).load(True)


def test_pickles_of_the_wrong_kind_are_one_line(tmp_path):
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps([{}] * 3, protocol=0))
    refused(path, "weights")
