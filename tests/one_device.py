"""What a distributed run says, beside what one process computes from the weights that it left."""

import pytest
import torch
from safetensors.torch import load_file

from milkshake_mbp import BoundsCallback, PruneCallback
from milkshake_mbp.framework.args import parse_args
from milkshake_mbp.framework.checkpoints import load_weights
from milkshake_mbp.framework.datamodules import Digits
from milkshake_mbp.framework.models import FFN
from milkshake_mbp.runs.settings import Pruning


def assert_agrees_with_one_device(files):
    """Margin, d and every bound to 1e-6, and every mask, of a run on digits."""
    result = files.read_result()
    args = parse_args(["-c", str(files.config)], Pruning)
    args.num_classes, args.ffn_input_dim = 10, 64
    model, data = FFN(args), Digits(args)
    load_weights(model, files.model)
    data.setup("fit")
    alone = BoundsCallback(initial=load_file(files.initial)).measure(model, data)
    assert result["margin"] == pytest.approx(alone.margin, rel=1e-6)
    assert result["d"] == pytest.approx(alone.search.d, rel=1e-6)
    together = {(bound["convention"], bound["name"]): bound["log_value"] for bound in result["bounds"]}
    for bound in alone.bounds:
        assert together[bound.convention, bound.name] == pytest.approx(bound.log_value, abs=1e-6)
    pruning = PruneCallback()
    pruning.prune(model)
    for name, mask in load_file(files.mask).items():
        assert torch.equal(mask, pruning.masks[name])
