"""What experiments written for upstream Milkshake rely on: groups, hooks, transforms, its data sets, its utilities."""

import pickle
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import Trainer
from torch.nn import functional as F
from torch.utils.data import DataLoader

from milkshake_mbp.callbacks import BoundsCallback
from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.checkpoints import load_weights
from milkshake_mbp.framework.datamodules import DataModule, Dataset, Digits, ImageDataset, Subset, load_datamodule
from milkshake_mbp.framework.datamodules.pickles import read_pickled_arrays
from milkshake_mbp.framework.datamodules.sampler import EpochWeightedSampler, balancing_weights
from milkshake_mbp.framework.logging import tensorboard_logger
from milkshake_mbp.framework.main import main
from milkshake_mbp.framework.models import FFN, load_model
from milkshake_mbp.framework.models.metrics import METRICS
from milkshake_mbp.framework.parser import Parser, add_input_args
from milkshake_mbp.framework.utils import compute_accuracy, get_weights, random_split, to_np
from tests.framework import upstream_data


def keys(**changes):
    return Namespace(**({"batch_size": 16, "data_dir": "data", "val_split": 0.25, "seed": 3} | changes))


class GroupedDigits(Digits):
    """Digits 0 to 4 against the others, in groups by whether an image is among the first third of its set."""

    def __init__(self, args, num_classes=2):
        super().__init__(args)
        self.num_classes, self.num_groups = num_classes, 3

    def load(self, train):
        images, numbers = super().load(train)
        place = (3 * torch.arange(len(numbers))) // len(numbers)
        return images, torch.stack([numbers, place], dim=1)

    def remap_targets(self, targets):
        return torch.stack([(targets[:, 0] > 4).long(), targets[:, 1]], dim=1)


class TestGroups:
    def test_metrics_are_those_of_the_predictions(self, configure):
        args = configure(metrics=list(METRICS))
        model, _, (found,) = main(args, FFN, GroupedDigits, verbose=False)
        data = GroupedDigits(args)
        data.setup("test")
        inputs, targets = data.dataset_test.__getitems__(range(360))
        logits = model(inputs).detach()
        right = (logits.argmax(dim=1) == targets[:, 0]).double()
        wanted = {"test_acc": right.mean(), "test_loss": F.cross_entropy(logits, targets[:, 0]), "test_acc5": 1.0}
        wanted |= {f"test_acc_class{k:02d}": right[targets[:, 0] == k].mean() for k in range(2)}
        by_group = [right[targets[:, 1] == g].mean() for g in range(3)]
        wanted |= {f"test_acc_group{g:02d}": value for g, value in enumerate(by_group)}
        wanted |= {f"test_acc5_group{g:02d}": 1.0 for g in range(3)} | {
            f"test_acc5_class{k:02d}": 1.0 for k in range(2)
        }
        wanted["test_worst_group_acc"] = min(by_group)
        assert found == pytest.approx({name: float(value) for name, value in wanted.items()}, abs=1e-6)

    def test_the_same_by_class_and_group_as_compute_accuracy(self):
        generator = torch.Generator().manual_seed(0)
        probs = torch.rand(200, 9, generator=generator).softmax(dim=1)
        targets = torch.stack([torch.arange(200) % 9, torch.arange(200) % 4], dim=1)
        found = compute_accuracy(probs, targets, 9, 4)
        five = [
            int(y) in row.argsort(descending=True)[:5].tolist() for row, y in zip(probs, targets[:, 0], strict=True)
        ]
        assert float(found["acc5"]) == pytest.approx(np.mean(five))
        for j in range(4):
            assert float(found["acc5_by_group"][j]) == pytest.approx(np.mean(np.array(five)[j::4]))
        assert found["total_by_class"].tolist() == [23, 23] + [22] * 7
        assert (
            float(found["correct_by_class"].sum()) == float(found["correct"]) == float(found["correct_by_group"].sum())
        )

    def test_group_numbers_are_checked(self):
        class TooMany(GroupedDigits):
            def __init__(self, args):
                super().__init__(args)
                self.num_groups = 2

        with pytest.raises(UserError, match="expected groups from 0 to 1, got 0 to 2"):
            TooMany(keys()).setup("fit")
        with pytest.raises(UserError, match="balanced_sampler: Digits has no groups"):
            Digits(keys(balanced_sampler="group")).setup("fit")

    @pytest.mark.parametrize(("kind", "column"), [("group", 1), (True, 0)])
    def test_balanced_draws(self, kind, column):
        class Rare(GroupedDigits):
            def load(self, train):
                images, numbers = Digits.load(self, train)
                return images, torch.stack([numbers, (torch.arange(len(numbers)) % 20 == 0).long()], dim=1)

        data = Rare(keys(balanced_sampler=kind, batch_size=200))
        data.setup("fit")
        loader = data.train_dataloader()
        drawn = torch.cat([targets[:, column] for _, targets in loader])
        share = drawn.bincount() / len(drawn)
        # Within four standard deviations of a half.
        assert len(drawn) == len(data.dataset_train) and (share - 0.5).abs().max() < 4 * 0.5 / len(drawn) ** 0.5
        first = [y.tolist() for _, y in loader]
        assert first == [y.tolist() for _, y in loader]
        loader.sampler.set_epoch(1)
        assert first != [y.tolist() for _, y in loader]

    def test_weighted_draws_follow_their_weights(self):
        weights = torch.tensor([0.0, 1.0, 3.0, 0.0]).repeat(5000)
        drawn = torch.tensor(list(EpochWeightedSampler(weights, seed=0))) % 4
        counts = drawn.bincount(minlength=4)
        assert counts[0] == counts[3] == 0
        assert float(counts[2]) / len(drawn) == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / 20000) ** 0.5)
        assert balancing_weights(torch.tensor([0, 1, 1, 1])).tolist() == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3])


class TestOneOutput:
    @pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
    def test_it_learns_and_is_counted(self, configure, loss):
        args = configure(max_epochs=12, lr=0.02, loss=loss, metrics=["loss", "acc", "acc_by_class"])
        model, _, (found,) = self.fit(args)
        assert found["test_acc"] > 0.8 and {"test_acc_class00", "test_acc_class01"} <= found.keys()
        data = self.data(args)
        data.setup(None)
        inputs, targets = data.dataset_test.__getitems__(range(360))
        outputs = model(inputs)
        assert outputs.shape == (360,)
        assert found["test_acc"] == pytest.approx(float(((outputs >= 0) == targets[:, 0]).float().mean()), abs=1e-6)
        # The bounds read the same sign.
        assert BoundsCallback().measure(model, data).test_error == pytest.approx(1 - found["test_acc"], abs=1e-6)
        (numbers,) = Trainer(logger=False, accelerator="cpu", enable_progress_bar=False).predict(
            model, DataLoader(data.dataset_test, 360, collate_fn=lambda batch: batch)
        )
        assert torch.equal(numbers, (outputs >= 0).long())

    @staticmethod
    def data(args):
        return GroupedDigits(args, num_classes=1)

    def fit(self, args):
        return main(args, FFN, self.data(args), verbose=False)

    def test_the_loss_is_binary_cross_entropy(self, configure):
        logits, labels = torch.tensor([0.3, -2.0, 1.5]), torch.tensor([1, 0, 0])
        model = self.model(configure(), [])
        each = -F.logsigmoid(torch.where(labels == 1, logits, -logits)).double()
        assert float(model._cross_entropy(logits, labels)[0]) == pytest.approx(float(each.mean()))
        weighted = self.model(configure(), [1.0, 3.0])._cross_entropy(logits, labels)[0]
        assert float(weighted) == pytest.approx(float((3 * each[0] + each[1] + each[2]) / 5))

    @staticmethod
    def model(args, weights):
        args.num_classes, args.num_groups, args.ffn_input_dim, args.class_weights = 1, 0, 4, weights
        return FFN(args)


def test_class_weights_weigh_the_loss(configure):
    args = configure(class_weights=[1.0] * 9 + [5.0], no_test=True)
    args.num_classes, args.num_groups, args.ffn_input_dim = 10, 0, 4
    logits = torch.randn(30, 10, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(30) % 10
    each = F.cross_entropy(logits, labels, reduction="none")
    weight = torch.where(labels == 9, 5.0, 1.0)
    assert float(FFN(args)._cross_entropy(logits, labels)[0]) == pytest.approx(
        float((each * weight).sum() / weight.sum())
    )
    args.class_weights = [1.0, 2.0]
    with pytest.raises(UserError, match=r"class_weights: expected a weight for each of 10 classes, got 2"):
        FFN(args)
    with pytest.raises(UserError, match="class_weights: they weight cross_entropy, not mse"):
        configure(class_weights=[1.0, 2.0], loss="mse")


class Noted(FFN):
    """Returns a number of its own beside the loss."""

    def step(self, batch, idx):
        return super().step(batch, idx) | {"brightness": batch[0].mean(), "rows": len(batch[1])}


class TwoSets(Digits):
    """Validated on the held-out samples and on ten of them."""

    def val_dataloader(self):
        return [self._data_loader(self.dataset_val), self._data_loader(Subset(self.dataset_val, range(10)))]


def test_numbers_of_a_step_and_several_loaders(configure):
    args = configure(val_split=0.2, metrics=["loss", "acc", "acc_by_class", "brightness"], no_test=True)
    model, validated, _ = main(args, Noted, TwoSets, verbose=False)
    data = TwoSets(args)
    data.setup("fit")
    inputs, targets = data.dataset_val.__getitems__(range(len(data.dataset_val)))
    right = (model(inputs).argmax(dim=1) == targets).double()
    found = validated[0] | validated[1]
    assert found["val_acc"] == found["val_acc/dataloader_idx_0"] == pytest.approx(float(right.mean()), abs=1e-6)
    assert found["val_acc/dataloader_idx_1"] == pytest.approx(float(right[:10].mean()), abs=1e-6)
    assert found["val_brightness"] == pytest.approx(float(inputs.double().mean()), abs=1e-5)
    assert found["val_brightness/dataloader_idx_1"] == pytest.approx(float(inputs[:10].double().mean()), abs=1e-5)
    assert "val_acc_class03/dataloader_idx_1" in found and not any("rows" in name for name in found)


def test_a_metric_that_nothing_computes(configure):
    with pytest.raises(UserError, match="metrics: 'acc_by_clas' is unknown: did you mean 'acc_by_class'"):
        main(configure(metrics=["loss", "acc_by_clas"]), FFN, Digits, verbose=False)
    with pytest.raises(UserError, match="metrics: 'f1' is unknown"):
        main(configure(metrics=["f1"]), load_model("resnet"), Digits, verbose=False)


def pictures(n=24, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)


class Birds(Dataset):
    """Images on disk, two classes in four groups, and a split of its own, as upstream's Waterbirds."""

    def download(self):
        root = self.folder()
        root.mkdir(parents=True, exist_ok=True)
        for index, pixels in enumerate(pictures()):
            Image.fromarray(pixels).save(root / f"{index}.png")

    def folder(self):
        from pathlib import Path

        return Path(self.root) / "birds"

    def load_data(self):
        number = np.arange(24)
        self.data = np.array([str(self.folder() / f"{index}.png") for index in number])
        self.groups = [np.flatnonzero(number % 4 == g) for g in range(4)]
        self.targets = np.stack([number % 2, number % 4], axis=1)
        self.train_indices, self.val_indices, self.test_indices = number[:12], number[12:18], number[18:]


class Waterbirds(DataModule):
    """A data module as upstream's experiments write it."""

    flips = 0

    def __init__(self, args, **kwargs):
        super().__init__(args, Birds, 2, 4, **kwargs)

    def default_transforms(self):
        return lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255

    def augmented_transforms(self):
        return lambda image: -self.default_transforms()(image)

    def train_preprocess(self, dataset_train):
        dataset_train = super().train_preprocess(dataset_train)
        self.seen = [dataset_train.targets[group, 1].tolist() for group in dataset_train.groups]
        return dataset_train


class TestUpstreamsData:
    @pytest.fixture
    def birds(self, tmp_path):
        def build(**changes):
            data = Waterbirds(keys(**({"data_dir": str(tmp_path), "batch_size": 5} | changes)))
            data.prepare_data()
            data.setup(None)
            return data

        return build

    def test_preset_split_groups_and_hooks(self, birds):
        data = birds()
        assert [len(part) for part in (data.dataset_train, data.dataset_val, data.dataset_test)] == [12, 6, 6]
        assert data.seen == [[g] * 3 for g in range(4)]
        assert [group.tolist() for group in data.dataset_test.groups] == [[2], [3], [0, 4], [1, 5]]
        assert np.asarray(data.dataset_test.targets)[:, 1].tolist() == [2, 3, 0, 1, 2, 3]
        assert data.sample_shape == (3, 8, 8) and "a preset validation set" in data.load_msg()
        image = torch.from_numpy(pictures()[12]).permute(2, 0, 1) / 255
        assert torch.allclose(data.dataset_val[0][0], image)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_samples_are_transformed_one_at_a_time(self, birds, workers):
        data = birds(data_augmentation=True, num_workers=workers, persistent_workers=True)
        seen, targets = (torch.cat(parts) for parts in zip(*data.train_dataloader(), strict=True))
        assert seen.shape == (12, 3, 8, 8) and seen.max() <= 0 and targets.shape == (12, 2)
        assert data.dataset_train[0][0].min() >= 0
        held, _ = next(iter(data.val_dataloader()))
        assert held.min() >= 0 and len(held) == 5

    def test_it_trains_and_is_bounded(self, birds, configure, tmp_path):
        args = configure(
            data_dir=str(tmp_path), batch_size=4, metrics=["loss", "acc", "acc_by_group"], ffn_num_layers=2
        )
        model, _, (found,) = main(args, FFN, Waterbirds, callbacks=[BoundsCallback()], verbose=False)
        assert {f"test_acc_group{g:02d}" for g in range(4)} <= found.keys()
        assert model.hparams["num_groups"] == 4

    def test_a_subset_of_a_subset(self, tmp_path):
        birds = Birds(tmp_path, download=True)
        part = Subset(Subset(birds, [3, 5, 10, 13, 20]), [4, 0, 2])
        assert part.targets[:, 1].tolist() == [0, 3, 2]
        assert [group.tolist() for group in part.groups] == [[0], [], [2], [1]]
        assert part.train_indices.tolist() == [1, 2] and part.test_indices.tolist() == [0]
        assert pickle.loads(pickle.dumps(part)).targets.tolist() == part.targets.tolist()
        fast = ImageDataset(torch.arange(6.0)[:, None], torch.arange(6))
        assert isinstance(Subset(fast, [4, 1]), ImageDataset) and Subset(fast, [4, 1]).targets.tolist() == [4, 1]

    def test_without_transforms_it_is_read_in_batches(self):
        class Plain(Dataset):
            def load_data(self):
                self.data, self.targets = pictures(40), np.arange(40) % 2

        data = DataModule(keys(), Plain, 2, 0)
        data.setup("fit")
        order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
        assert isinstance(data.dataset_train, ImageDataset)
        # The same samples are held out as upstream's random_split holds out.
        assert torch.equal(data.dataset_val.data, torch.from_numpy(pictures(40)).permute(0, 3, 1, 2)[order[30:]])
        assert data.dataset_val[0][0].min() >= -1 and data.dataset_val[0][0].max() > 0.5

    def test_paths_without_transforms(self, tmp_path):
        Birds(tmp_path, download=True)
        data = DataModule(keys(data_dir=str(tmp_path), image_size=6), Birds, 2, 4)
        data.setup("fit")
        inputs, _ = next(iter(data.train_dataloader()))
        assert inputs.shape == (12, 3, 6, 6) and inputs.min() >= -1 and inputs.max() <= 1


class TestOwnTransforms:
    """Of the framework's data sets, through a subclass."""

    class Slow(Digits):
        transforms_take_pictures = False

        def default_transforms(self):
            # Digits have pixels up to 16; tensors come as pixels / 255.
            return lambda pixels: pixels * (255 / 8) - 1

    def test_the_slow_path_gives_what_the_fast_one_does(self):
        fast, slow = Digits(keys()), self.Slow(keys())
        for data in (fast, slow):
            data.setup(None)
        for (x, y), (other, number) in zip(fast.train_dataloader(), slow.train_dataloader(), strict=True):
            assert torch.allclose(x, other, atol=1e-6) and torch.equal(y, number)
        assert torch.allclose(fast.dataset_test[5][0], slow.dataset_test[5][0], atol=1e-6)

    def test_pictures(self):
        class Seen(Digits):
            def default_transforms(self):
                return lambda picture: torch.tensor([picture.size[0], picture.getextrema()[1]]).float()

        data = Seen(keys())
        data.setup("fit")
        assert data.dataset_train[0][0].tolist() == [8, float(data.dataset_train.data[0].max())]

    def test_only_training_is_augmented(self):
        class Dark(Digits):
            def augmented_transforms(self):
                return lambda picture: torch.zeros(1, 8, 8)

        data = Dark(keys(data_augmentation=True))
        data.setup("fit")
        assert isinstance(data.dataset_train, ImageDataset) and data.dataset_train[0][0].abs().sum() > 0
        assert all(x.abs().sum() == 0 for x, _ in data.train_dataloader())

    def test_targets_of_samples(self):
        class Named(Digits):
            def __init__(self, args):
                super().__init__(args)
                self.train_target_transforms = lambda target: target + 100

        data = Named(keys())
        data.setup("fit")
        assert all(y.min() >= 100 for _, y in data.train_dataloader())

    def test_preset_split_of_load(self):
        class Preset(Digits):
            def preset_split(self):
                return range(100, 1400), range(100)

        data, whole = Preset(keys()), Digits(keys(val_split=0))
        data.setup("fit")
        whole.setup("fit")
        assert torch.equal(data.dataset_val.data, whole.dataset_train.data[:100])
        assert len(data.dataset_train) == 1300


def test_large_images_are_resized_as_they_are_read(monkeypatch):
    at_once, lazily = Digits(keys(image_size=20)), Digits(keys(image_size=20))
    at_once.setup("fit")
    monkeypatch.setattr("milkshake_mbp.framework.datamodules.datamodule._KEPT", 0)
    lazily.setup("fit")
    assert lazily.dataset_train.data.shape[2:] == (8, 8) and lazily.sample_shape == (1, 20, 20)
    assert torch.equal(lazily.dataset_train[3][0], at_once.dataset_train[3][0])


class TestFiles:
    def test_cifar10(self, tmp_path):
        upstream_data.write_cifar10(tmp_path, each=12)
        data = load_datamodule("cifar10")(keys(data_dir=str(tmp_path), val_split=0))
        data.prepare_data()
        data.setup(None)
        entry = upstream_data.cifar_entry(12, 10, 1, "labels")
        assert np.array_equal(data.dataset_train.data[12:24].reshape(12, -1), entry["data"])
        assert data.dataset_train.targets[12:24].tolist() == entry["labels"] and len(data.dataset_test) == 12

    def test_cifar100(self, tmp_path):
        upstream_data.write_cifar100(tmp_path)
        data = load_datamodule("cifar100")(keys(data_dir=str(tmp_path), val_split=0))
        data.prepare_data()
        data.setup(None)
        assert data.dataset_train.data.shape == (200, 3, 32, 32) and data.num_classes == 100
        assert data.dataset_test.targets.tolist() == list(range(100))

    def test_svhn(self, tmp_path):
        upstream_data.write_svhn(tmp_path)
        data = load_datamodule("svhn")(keys(data_dir=str(tmp_path), val_split=0))
        data.prepare_data()
        data.setup(None)
        pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 120), dtype=np.uint8)
        assert np.array_equal(data.dataset_train.data[7], pixels[..., 7].transpose(2, 0, 1))
        assert data.dataset_train.targets[:11].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
        (tmp_path / "svhn" / "test_32x32.mat").write_bytes(b"MATLAB 5.0 MAT-file, and then nothing")
        with pytest.raises(UserError, match=r"test_32x32\.mat is truncated or damaged"):
            load_datamodule("svhn")(keys(data_dir=str(tmp_path))).setup("test")

    def test_parity_of_mnist_from_upstreams_folder(self, tmp_path, monkeypatch):
        upstream_data.write_mnist(tmp_path, 60, 20)
        (tmp_path / "MNIST").rename(tmp_path / "MNISTDataset")
        kind = load_datamodule("binary_mnist")
        monkeypatch.setattr(kind, "num_images", {"train": 60, "t10k": 20})
        data = kind(keys(data_dir=str(tmp_path), val_split=0))
        data.prepare_data()
        data.setup(None)
        assert data.num_classes == 2 and data.dataset_test.targets.tolist() == [0, 1] * 10

    @pytest.mark.parametrize("protocol", range(2, 6))
    def test_pickled_arrays_of_any_protocol(self, tmp_path, protocol):
        arrays = {"data": np.arange(12, dtype=np.uint8).reshape(3, 4), "x": np.asfortranarray(np.ones((2, 3), ">f4"))}
        content = {**arrays, b"labels": [1, 2], "name": "batch", "one": np.int64(3)}
        (tmp_path / "file").write_bytes(pickle.dumps(content, protocol=protocol))
        found = read_pickled_arrays(tmp_path / "file")
        for name, array in arrays.items():
            assert np.array_equal(found[name], array) and found[name].dtype == array.dtype
        assert found["labels"] == [1, 2] and found["one"] == 3

    def test_pickles_run_nothing(self, tmp_path):
        class Bomb:
            def __reduce__(self):
                return (open, (str(tmp_path / "exploded"), "w"))

        for name, content in (("bomb", {"data": Bomb()}), ("object", {"data": np.array([Bomb()], dtype=object)})):
            (tmp_path / name).write_bytes(pickle.dumps(content))
            with pytest.raises(
                UserError, match=r"refers to \w+\.open, which a file of arrays does not need: it was not read"
            ):
                read_pickled_arrays(tmp_path / name)
        assert not (tmp_path / "exploded").exists()
        (tmp_path / "bomb").write_bytes(pickle.dumps({"data": np.ones(9)})[:-20])
        with pytest.raises(UserError, match="truncated or damaged"):
            read_pickled_arrays(tmp_path / "bomb")


class TestUtilities:
    def test_random_split(self):
        data = ImageDataset(torch.arange(10.0)[:, None], torch.arange(10))
        order = torch.randperm(10, generator=torch.Generator().manual_seed(1)).tolist()
        first, second = random_split(data, [0.75, 0.25], torch.Generator().manual_seed(1))
        assert first.targets.tolist() == order[:8] and second.targets.tolist() == order[8:]
        assert len(random_split(data, [3, 7], torch.Generator())[1]) == 7
        with pytest.raises(ValueError, match="do not sum to the 10 samples"):
            random_split(data, [3, 3], torch.Generator())

    def test_to_np(self):
        for given in (torch.ones(2, requires_grad=True), [torch.ones(()), torch.ones(())], [1.0, 1.0], np.ones(2)):
            assert to_np(given).tolist() == [1, 1]
        assert to_np([]).size == 0
        with pytest.raises(ValueError, match="got str"):
            to_np("text")

    def test_get_weights_and_steps_between_checkpoints(self, configure, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        args = configure(max_epochs=1, ckpt_every_n_steps=4, limit_train_batches=9, no_test=True)
        main(args, FFN, Digits, verbose=False)
        assert get_weights(args).endswith("epoch=000-step=000008.ckpt")
        assert get_weights(args, idx=0).endswith("epoch=000-step=000004.ckpt")
        assert get_weights(args, best=True).endswith("best.ckpt")
        old = tmp_path / "lightning_logs" / "version_3" / "checkpoints"
        old.mkdir(parents=True)
        (old / "epoch=1.ckpt").touch()
        assert get_weights(args, 3, idx=-1).endswith("version_3/checkpoints/epoch=1.ckpt")
        with pytest.raises(UserError, match="get_weights: no checkpoint of index 5"):
            get_weights(args, idx=5)

    def test_validation_by_steps(self, configure):
        seen = []

        class Watched(FFN):
            def on_validation_epoch_end(self):
                super().on_validation_epoch_end()
                seen.append(self.global_step)

        args = configure(val_split=0.2, max_epochs=2, check_val_every_n_steps=4, limit_train_batches=6, no_test=True)
        main(args, Watched, Digits, verbose=False)
        assert seen[:3] == [4, 8, 12]

    def test_tensorboard_only_where_it_is(self, monkeypatch):
        monkeypatch.setattr("milkshake_mbp.framework.logging.find_spec", lambda name: None)
        assert tensorboard_logger(Namespace(tensorboard=None, wandb=False, out_dir="out")) == []
        with pytest.raises(UserError, match="tensorboard: true needs the package tensorboard"):
            tensorboard_logger(Namespace(tensorboard=True, wandb=False, out_dir="out"))


class TestWeights:
    def test_what_fits_is_loaded(self, configure, tmp_path, capsys):
        def network(width, seed):
            args = configure(ffn_hidden_dim=8)
            args.num_classes, args.num_groups, args.ffn_input_dim = width, 0, 4
            torch.manual_seed(seed)
            return FFN(args)

        first, second = network(10, 0), network(3, 1)
        head = second.model[-1].weight.clone()
        torch.save({"state_dict": first.state_dict()}, tmp_path / "w.ckpt")
        with pytest.raises(UserError, match="does not fit this model"):
            load_weights(second, tmp_path / "w.ckpt")
        load_weights(second, tmp_path / "w.ckpt", strict=False)
        assert torch.equal(second.model[0].weight, first.model[0].weight) and torch.equal(second.model[-1].weight, head)
        assert (
            "2 tensors loaded; model.6.weight of the file left out; model.6.weight as they were"
            in capsys.readouterr().out
        )
        torch.save({"other.weight": torch.ones(2, 2)}, tmp_path / "w.ckpt")
        with pytest.raises(UserError, match="does not fit this model"):
            load_weights(second, tmp_path / "w.ckpt", strict=False)


class TestParser:
    @staticmethod
    def parser(**how):
        parser = add_input_args(Parser(**how))
        parser.add("--epsilon", default=0.03, type=float, help="Largest change.")
        parser.add("--attack", default=False, type=lambda text: text == "True")
        parser.add("--sizes", nargs="*", type=int)
        parser.add("--kind", choices=["fast", "slow"], default="fast")
        parser.add("--shout", default="a", type=str.upper)
        return parser

    def test_own_keys(self, tmp_path):
        (tmp_path / "x.yaml").write_text("epsilon: 1e-2\nattack: True\nsizes: [3, 4]\nlr: 0.5\n")
        args = self.parser().parse_args(["-c", str(tmp_path / "x.yaml"), "--kind", "slow", "--shout", "b"])
        found = (args.epsilon, args.attack, args.sizes, args.kind, args.shout, args.lr)
        assert found == (0.01, True, [3, 4], "slow", "B", 0.5)
        args = self.parser().parse_args([])
        assert (args.epsilon, args.attack, args.sizes, args.kind, args.shout) == (0.03, False, [], "fast", "A")

    def test_defaults_and_refusals(self, capsys):
        parser = self.parser()
        parser.set_defaults(max_epochs=7, epsilon=0.5, metrics=["loss"])
        args = parser.parse_args([])
        assert (args.max_epochs, args.epsilon, args.metrics) == (7, 0.5, ["loss"])
        with pytest.raises(UserError, match="epsilon on the command line: expected number"):
            parser.parse_args(["--epsilon", "wide"])
        with pytest.raises(UserError, match="key 'lr' is added, but there is one of that name"):
            parser.add("--lr", default=1.0, type=float)
        with pytest.raises(UserError, match="the configuration is missing"):
            self.parser(config_arg_is_required=True).parse_args([])
        with pytest.raises(SystemExit):
            parser.parse_args(["--help"])
        assert "Largest change (default: 0.5)" in capsys.readouterr().out


class TestTransformers:
    @pytest.mark.parametrize(
        ("name", "given"),
        [
            ("convnextv2", {}),
            ("bert", {}),
            ("vit", {"vit_pretrained": "imagenet21k"}),
            ("swin", {"swin_version": "large"}),
        ],
    )
    def test_a_clear_line_without_the_package(self, configure, monkeypatch, name, given):
        monkeypatch.setitem(sys.modules, "transformers", None)
        args = configure(model=name, **given)
        args.num_classes, args.num_groups, args.input_channels, args.image_size = 10, 0, 3, 224
        with pytest.raises(UserError, match=r"needs the package transformers, which is not installed: pip install"):
            load_model(name)(args)

    @pytest.mark.parametrize(
        ("name", "given"),
        [
            (
                "convnextv2",
                {"convnextv2_pretrained": "none", "convnextv2_initial_width": 4, "convnextv2_stage3_depth": 1},
            ),
            ("bert", {"bert_pretrained": False, "bert_width": 64, "bert_depth": 1, "lr_scheduler": "linear"}),
        ],
    )
    def test_a_step_with_it(self, configure, name, given):
        pytest.importorskip("transformers")
        args = configure(model=name, train_fc_only=True, **given)
        args.num_classes, args.num_groups, args.input_channels, args.image_size = 3, 0, 3, 64
        model = load_model(name)(args)
        inputs = torch.ones(2, 5, 3) if name == "bert" else torch.rand(2, 3, 64, 64)
        result = model.step((inputs, torch.tensor([0, 2])), 0)
        result["loss"].backward()
        assert result["probs"].shape == (2, 3)
        trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
        assert sum(map(torch.numel, trained)) == 3 * (model.model.head.in_features + 1)
        model.configure_optimizers()


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_feature_extractors(configure, name):
    keys = {f"{name}_pretrained": "none", f"{name}_type": "feature_extractor", "swin_version": "tiny"}
    args = configure(model=name, **keys)
    args.num_classes, args.num_groups, args.input_channels, args.image_size = 10, 0, 3, 32
    model = load_model(name)(args)
    model.fit_to(torch.zeros(3, 32, 32))
    assert model.predict_step(torch.zeros(2, 3, 32, 32), 0).shape == {"vit": (2, 5, 768), "swin": (2, 1, 768)}[name]


def test_a_small_first_layer_of_resnet(configure):
    args = configure(model="resnet", resnet_pretrained=False, resnet_small_input=True)
    args.num_classes, args.num_groups, args.input_channels, args.image_size = 10, 0, 1, 8
    model = load_model("resnet")(args)
    assert model.model.layer1(model.model.maxpool(model.model.conv1(torch.zeros(1, 1, 8, 8)))).shape == (1, 64, 8, 8)
