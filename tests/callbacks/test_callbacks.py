import math
from argparse import Namespace
from copy import deepcopy

import pytest
import torch
from torch.utils.data import Dataset

from milkshake_mbp import BoundsCallback, PruneCallback
from milkshake_mbp.callbacks.data import train_samples
from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.datamodules import Digits
from milkshake_mbp.framework.main import main
from milkshake_mbp.framework.models import FFN
from milkshake_mbp.reading import Samples, measure_outputs, registered_kernels
from milkshake_mbp.theory.bounds import ROWS
from tests.quick import configuration


def weights(model):
    return [parameter.detach().clone() for parameter in model.model.parameters()]


def everything(dataset):
    return dataset.__getitems__(range(len(dataset)))


def margins_by_hand(model, dataset):
    inputs, targets = everything(dataset)
    rows = model(inputs).double().tolist()
    return [row[y] - max(v for j, v in enumerate(row) if j != y) for row, y in zip(rows, targets.tolist(), strict=True)]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    args = configuration(tmp_path_factory.mktemp("fitted"), max_epochs=40, batch_size=32)
    return main(args, FFN, Digits, verbose=False)[0], args


@pytest.fixture
def trained(fitted, tmp_path):
    """A network that fits digits, its datamodule, and its configuration."""
    model, args = fitted
    args = Namespace(**vars(args) | {"out_dir": str(tmp_path / "out")})
    data = Digits(args)
    data.setup()
    return deepcopy(model), data, args


class TestBoundsCallback:
    def test_training_is_left_alone(self, configure):
        """With dropout, whose masks come from the global random state, down to the last bit."""
        args = configure(max_epochs=3, dropout_prob=0.2)
        plain, _, _ = main(args, FFN, Digits, verbose=False)
        callback = BoundsCallback()
        watched, _, _ = main(args, FFN, Digits, callbacks=[callback], verbose=False)
        assert callback.report.epoch == 3
        assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(watched), strict=True))

    def test_report_is_about_the_data(self, trained):
        model, data, _ = trained
        report = BoundsCallback().measure(model, data)
        by_hand = margins_by_hand(model, data.dataset_train)
        assert report.num_samples == len(by_hand) == 1437
        assert report.margin == pytest.approx(min(by_hand), rel=1e-5)
        assert report.margin > 0
        inputs, _ = everything(data.dataset_train)
        assert report.input_norm == pytest.approx(inputs.flatten(1).norm(dim=1).max().item(), rel=1e-6)
        wrong = sum(margin <= 0 for margin in margins_by_hand(model, data.dataset_test))
        assert report.test_error == pytest.approx(wrong / 360)
        absent = {"initial", "sketches", "coded", "magnitudes", "fourier", "operator_scales"}
        expected = [(row.convention, row.name) for row in ROWS if not absent & set(row.needs)]
        assert {(b.convention, b.name) for b in report.bounds} == set(expected)

    def test_the_searched_strength_is_affordable(self, trained):
        model, data, _ = trained
        report = BoundsCallback().measure(model, data)
        assert report.epoch == 0
        assert 0 < report.search.d < 10
        assert report.search.log_needed <= math.log(report.margin)

    def test_true_error_is_of_the_network_pruned_at_the_searched_strength(self, trained):
        model, data, _ = trained
        report = BoundsCallback(seed=3).measure(model, data)
        PruneCallback(d=report.search.d, seed=3, keep_diagonal=False).prune(model)
        wrong = sum(margin <= 0 for margin in margins_by_hand(model, data.dataset_test))
        assert report.true_error == pytest.approx(wrong / 360)

    def test_leading_rows_are_about_the_network_that_pruning_leaves(self, trained):
        model, data, _ = trained
        for keep_diagonal in (True, False):
            bounds = BoundsCallback(prune_d=50.0, seed=4, keep_diagonal=keep_diagonal).measure(model, data).bounds
            (spread,) = (b for b in bounds if b.name == "theorem_5_2_measured")
            pruning = PruneCallback(d=50.0, seed=4, keep_diagonal=keep_diagonal)
            pruning.prune(model)
            total = 0.0
            for weight, before in zip(weights(model), pruning.weights.values(), strict=True):
                kept = weight != 0
                rows, columns = weight.shape
                count = max(int(kept.sum(dim=1).max()) * rows, int(kept.sum(dim=0).max()) * columns)
                alphabet = 2 * math.ceil(float(weight.abs().max()) / (float(before.abs().max()) / 256)) + 1
                total += count * math.log(max(rows, columns)) ** 2 * math.log(alphabet)
            assert spread.terms["log_complexity"] == pytest.approx(0.5 * math.log(total / 1437), rel=1e-9)
            pruning.restore(model)

    def test_every_n_epochs_and_the_last(self, configure):
        measured = []

        class Counting(BoundsCallback):
            def _measure(self, module, train, test, epoch, stability):
                measured.append((epoch, stability))
                return super()._measure(module, train, test, epoch, stability)

        main(configure(max_epochs=5), FFN, Digits, callbacks=[Counting(every_n_epochs=2)], verbose=False)
        assert measured == [(2, False), (4, False), (5, True)]

    def test_each_fit_is_measured_from_its_own_initial_weights(self, configure):
        callback = BoundsCallback()
        for width in (16, 24):
            main(configure(max_epochs=1, ffn_hidden_dim=width), FFN, Digits, callbacks=[callback], verbose=False)
            assert callback.initial["model.0.weight"].shape == (width, 64)

    def test_biases_and_sigmoids_are_not_the_papers_network(self, configure):
        for keys, word in (({"bias": True}, "biases"), ({"ffn_activation": "sigmoid"}, "Sigmoid")):
            args = configure(**keys)
            data = Digits(args)
            model, _, _ = main(args, FFN, data, verbose=False)
            bounds = {(b.convention, b.name): b for b in BoundsCallback().measure(model, data).bounds}
            assert word in bounds["leading", "neyshabur_2015"].reason
            assert not bounds["leading", "theorem_5_2"].applies
            assert bounds["leading", "dense"].applies and bounds["paper", "bartlett_2017"].applies

    def test_test_set_is_left_alone_if_asked(self, configure):
        callback, pruning = BoundsCallback(), PruneCallback()
        data = Digits(configure(no_test=True))
        main(configure(no_test=True), FFN, data, callbacks=[callback, pruning], verbose=False)
        assert callback.report.test_error is None and pruning.report.pruned_test_error is None
        assert not hasattr(data, "dataset_test")

    def test_diverged_training_is_one_line(self, trained):
        model, data, _ = trained
        model.model[0].weight.data[0, 0] = math.nan
        with pytest.raises(UserError, match="training diverged"):
            BoundsCallback().measure(model, data)


class TestPruneCallback:
    def test_what_main_tests_is_the_pruned_network(self, configure):
        args = configure(max_epochs=5)
        callback = PruneCallback(d=2.0)
        model, _, tested = main(args, FFN, Digits, callbacks=[callback], verbose=False)
        report = callback.report
        assert 1 - tested[0]["test_acc"] == pytest.approx(report.pruned_test_error, abs=1e-6)
        unpruned, _, tested_unpruned = main(args, FFN, Digits, verbose=False)
        assert 1 - tested_unpruned[0]["test_acc"] == pytest.approx(report.unpruned_test_error, abs=1e-6)
        for kernel, before in zip(registered_kernels(model), weights(unpruned), strict=True):
            assert torch.equal(callback.weights[kernel.parameter], before)
            assert torch.equal(kernel.matrix(model), before * callback.masks[kernel.parameter])
        callback.restore(model)
        assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(unpruned), strict=True))

    def test_report_counts_what_is_there(self, trained):
        model, data, _ = trained
        callback = PruneCallback(d=1.0)
        report = callback.prune(model, data)
        kept = [int(weight.count_nonzero()) for weight in weights(model)]
        assert [layer.kept for layer in report.layers] == kept
        assert report.sparsity == pytest.approx(1 - sum(kept) / sum(w.numel() for w in weights(model)))
        assert all(bool(weight.diagonal().all()) for weight in weights(model))
        assert report.metrics()["prune/sparsity/model.0"] == report.layers[0].sparsity

    def test_same_seed_same_mask(self, trained):
        model, _, _ = trained
        callbacks = [PruneCallback(d=1.0, seed=seed) for seed in (5, 5, 6)]
        for callback in callbacks:
            callback.prune(model)
            callback.restore(model)
        first, second, other = ([mask.sum().item() for mask in c.masks.values()] for c in callbacks)
        assert first == second != other

    def test_auto_finds_the_searched_strength(self, trained):
        model, data, _ = trained
        expected = BoundsCallback().measure(model, data).search.d
        assert PruneCallback(d="auto").prune(model, data).d == expected

    def test_what_went_wrong_is_what_is_said(self, trained):
        model, data, _ = trained
        with pytest.raises(UserError, match="to the Trainer") as raised:
            PruneCallback(d="auto").prune(model)
        assert "diverged" not in str(raised.value)
        model.model[0].weight.data[0, 0] = math.nan
        with pytest.raises(UserError, match="training diverged"):
            PruneCallback(d="auto").prune(model, data)

    def test_zero_prunes_nothing(self, trained):
        model, data, _ = trained
        before = weights(model)
        assert PruneCallback(d=0).prune(model, data).sparsity == 0
        assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))

    @pytest.mark.parametrize("d", [-1, math.nan, "strong", True, None])
    def test_bad_strength(self, d):
        with pytest.raises(UserError, match='d must be "auto" or a number'):
            PruneCallback(d=d)

    def test_evaluation_without_fit_is_of_the_pruned_network(self, configure):
        args = configure(eval_only=True)
        bounds, pruning = BoundsCallback(), PruneCallback(d=3.0)
        _, _, tested = main(args, FFN, Digits, callbacks=[bounds, pruning], verbose=False)
        assert pruning.report.sparsity > 0.3
        assert 1 - tested[0]["test_acc"] == pytest.approx(pruning.report.pruned_test_error, abs=1e-6)
        assert bounds.report.test_error == pruning.report.unpruned_test_error


def test_a_collapsed_network_errs_as_its_accuracy_says(trained):
    model, data, _ = trained
    model.model[-1].weight.data.zero_()
    outputs = measure_outputs(model, train_samples(data))
    zeros = int((data.dataset_train.targets == 0).sum())
    assert outputs.error == pytest.approx(1 - zeros / len(data.dataset_train))
    assert not outputs.margins.any()


class PerSample(Dataset):
    """A dataset as upstream has it: one sample at a time, with a random state of its own making."""

    def __init__(self, dataset):
        self.dataset, self.read = dataset, 0

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        self.read += 1
        torch.rand(1)
        inputs, target = self.dataset[index]
        return inputs, int(target)


def test_a_dataset_without_batches_is_read_once_and_leaves_the_random_state(trained):
    model, data, _ = trained
    slow = PerSample(data.dataset_train)
    samples = Samples(slow, torch.utils.data.default_collate)
    state = torch.get_rng_state()
    first, second = measure_outputs(model, samples), measure_outputs(model, samples)
    assert torch.equal(torch.get_rng_state(), state)
    assert slow.read == len(slow)
    direct = measure_outputs(model, train_samples(data))
    assert torch.allclose(first.margins, direct.margins, atol=1e-5)
    assert torch.equal(first.margins, second.margins)


def test_modes_come_back(trained):
    model, data, _ = trained
    model.train()
    model.model[1].eval()
    measure_outputs(model, train_samples(data))
    assert model.training and model.model.training and not model.model[1].training
