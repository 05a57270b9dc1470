import struct
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch.nn import functional
from torchvision import datasets as torchvision_datasets

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework import datamodules
from milkshake_mbp.framework.datamodules import (
    CIFAR10,
    MNIST,
    Arrays,
    DataModule,
    Digits,
    EpochRandomSampler,
    ImageDataset,
    load_datamodule,
)
from milkshake_mbp.framework.datamodules.cifar10 import CLASSES, random_crop_and_flip
from milkshake_mbp.framework.datamodules.files import MNIST_SIZES, stored_training_set


def arguments(**changes):
    return Namespace(**({"batch_size": 16, "data_dir": "data", "val_split": 0.2, "seed": 3} | changes))


def noise_images(n=200, channels=3, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=generator)


class Numbered(DataModule):
    """Sample i is an image whose every float is i, of class i mod 5."""

    num_loads = 0

    def __init__(self, args, num_classes=5):
        super().__init__(args, num_classes)

    def load(self, train):
        self.num_loads += 1
        n = 100 if train else 30
        return torch.arange(n).float().reshape(n, 1, 1, 1).expand(n, 1, 2, 2), torch.arange(n) % 5


class Pictures(DataModule):
    channels = 3

    def load(self, train):
        return noise_images(channels=self.channels), torch.arange(200) % 4


def identities(dataset):
    return dataset.data[:, 0, 0, 0].int().tolist()


def order_of(loader):
    return torch.cat([x[:, 0, 0, 0] for x, _ in loader]).int().tolist()


class TestRegistry:
    def test_names_give_their_classes(self):
        assert load_datamodule("digits") is Digits
        assert load_datamodule("cifar10") is CIFAR10
        assert {load_datamodule(name).__name__ for name in datamodules.DATAMODULES} <= set(dir(datamodules))

    def test_unknown_name_is_corrected(self):
        with pytest.raises(UserError, match="'fashion_mnist'"):
            load_datamodule("FashionMnist")

    @pytest.mark.parametrize("separator", [":", "."])
    def test_own_class(self, separator, tmp_path, monkeypatch):
        name = f"own_data_{'colon' if separator == ':' else 'dot'}"
        (tmp_path / f"{name}.py").write_text(
            "from milkshake_mbp.framework.datamodules import Digits\nclass Mine(Digits): pass\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        assert load_datamodule(f"{name}{separator}Mine").__name__ == "Mine"

    @pytest.mark.parametrize("name", ["no_such_module:Mine", "pathlib:Mine", "pathlib:Path", "pathlib.Path"])
    def test_own_class_that_is_none(self, name):
        with pytest.raises(UserError, match="datamodule: "):
            load_datamodule(name)

    @pytest.mark.long
    def test_only_the_chosen_dataset_is_imported(self):
        code = (
            "import sys; from milkshake_mbp.framework.datamodules import load_datamodule\n"
            "load_datamodule('arrays')\n"
            "own = {f'milkshake_mbp.framework.datamodules.{x}' for x in 'mnist digits cifar10'.split()}\n"
            "assert not (own | {'sklearn.datasets'}) & set(sys.modules)\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True)


class TestImageDataset:
    def test_a_batch_is_its_samples_stacked(self):
        dataset = ImageDataset(noise_images(), torch.arange(200), scale=0.5, shift=-1.0)
        inputs, targets = dataset.__getitems__([7, 3, 199, 3])
        samples = [dataset[i] for i in (7, 3, -1, 3)]
        assert torch.equal(inputs, torch.stack([x for x, _ in samples]))
        assert torch.equal(targets, torch.stack([y for _, y in samples]))
        assert inputs.dtype == torch.float32 and targets.dtype == torch.int64
        assert samples[0][0].shape == (3, 8, 8) and samples[0][1].shape == ()
        with pytest.raises(IndexError):
            dataset[200]

    @pytest.mark.parametrize("scale, shift", [(1 / 127.5, -1.0), ([0.1, 0.2, 0.3], [-1.0, 0.0, 2.0])])
    def test_normalization_is_that_of_floats(self, scale, shift):
        dataset = ImageDataset(noise_images(), torch.zeros(200, dtype=torch.int64), scale, shift)
        inputs, _ = dataset.__getitems__(range(200))
        column = torch.tensor([scale, shift], dtype=torch.float64).reshape(2, -1, 1, 1)
        assert torch.allclose(inputs.double(), column[1] + column[0] * dataset.data, rtol=1e-7, atol=3e-7)
        assert inputs.dtype == torch.float32

    def test_floats_are_left_alone(self):
        data = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
        inputs, _ = ImageDataset(data, torch.zeros(50, dtype=torch.int64)).__getitems__(range(50))
        assert torch.equal(inputs, data)

    def test_no_pixel_leaves_the_interval(self):
        pixels = torch.arange(256, dtype=torch.uint8).reshape(256, 1)
        dataset = ImageDataset(pixels, torch.zeros(256, dtype=torch.int64), DataModule.scale, DataModule.shift)
        inputs = dataset.__getitems__(range(256))[0].double()
        assert inputs.abs().max() <= 1
        assert (inputs - (pixels / 127.5 - 1)).abs().max() < 2e-7

    def test_augmented_shares_storage(self):
        dataset = ImageDataset(noise_images(), torch.arange(200))
        view = dataset.augmented(lambda x, generator: x * 0, torch.Generator())
        assert view[1][0].abs().sum() == 0
        assert torch.equal(dataset[1][0], dataset.data[1].float())
        assert view.data.data_ptr() == dataset.data.data_ptr()

    def test_subset_and_to(self):
        dataset = ImageDataset(noise_images(), torch.arange(200), [1.0] * 3, [0.0] * 3)
        part = dataset.subset([5, 2])
        assert part.targets.tolist() == [5, 2] and torch.equal(part[1][0], dataset[2][0])
        assert dataset.to("cpu").data.data_ptr() == dataset.data.data_ptr()
        assert {value.device.type for value in vars(dataset.to("meta")).values() if hasattr(value, "device")} == {
            "meta"
        }

    def test_impossible_arguments(self):
        with pytest.raises(ValueError, match="200 samples"):
            ImageDataset(noise_images(), torch.arange(3))
        with pytest.raises(ValueError, match="2 coefficients"):
            ImageDataset(noise_images(), torch.arange(200), [1.0, 2.0], [1.0, 2.0])
        with pytest.raises(ValueError, match="both"):
            ImageDataset(noise_images(), torch.arange(200), [1.0, 2.0, 3.0], 0.0)


class TestInterface:
    def test_attributes_and_stages(self):
        datamodule = Numbered(arguments())
        assert (datamodule.num_classes, datamodule.num_groups, datamodule.batch_size) == (5, 0, 16)
        assert (datamodule.data_dir, datamodule.val_split, datamodule.seed) == (Path("data"), 0.2, 3)
        assert "\n" not in datamodule.load_msg() and "Numbered" in datamodule.load_msg()
        with pytest.raises(RuntimeError):
            _ = datamodule.input_dim
        datamodule.setup("fit")
        assert datamodule.input_dim == 4 and not hasattr(datamodule, "dataset_test")
        datamodule.setup("test")
        assert len(datamodule.dataset_test) == 30
        tested = Numbered(arguments())
        tested.setup("test")
        assert tested.input_dim == 4 and not hasattr(tested, "dataset_train")
        everything = Numbered(arguments())
        everything.setup(None)
        assert len(everything.dataset_train) == 80 and len(everything.dataset_test) == 30

    def test_stages_load_once(self):
        datamodule = Numbered(arguments())
        for stage in ("fit", "validate", "test", "fit", "test", None):
            datamodule.setup(stage)
        assert datamodule.num_loads == 2

    def test_split_is_complete_disjoint_and_seeded(self):
        def split(seed):
            datamodule = Numbered(arguments(seed=seed))
            datamodule.setup("fit")
            return identities(datamodule.dataset_train), identities(datamodule.dataset_val)

        train, val = split(3)
        assert len(val) == 20 and sorted(train + val) == list(range(100))
        assert split(3) == (train, val) and split(4)[1] != val

    def test_without_split_everything_is_trained_on(self):
        datamodule = Numbered(arguments(val_split=0))
        datamodule.setup("fit")
        assert identities(datamodule.dataset_train) == list(range(100))
        assert len(datamodule.dataset_val) == 0 and datamodule.val_dataloader() == []

    def test_batches(self):
        datamodule = Numbered(arguments())
        datamodule.setup(None)
        batches = list(datamodule.train_dataloader())
        assert [len(y) for _, y in batches] == [16] * 5
        assert all(torch.equal(x[:, 0, 0, 0].long() % 5, y) for x, y in batches)
        assert order_of(datamodule.val_dataloader()) == identities(datamodule.dataset_val)
        assert [len(y) for _, y in datamodule.test_dataloader()] == [16, 14]

    def test_label_noise(self):
        clean, noisy = (Numbered(arguments(label_noise=noise)) for noise in (0.0, 0.3))
        for datamodule in (clean, noisy):
            datamodule.setup(None)
        changed = clean.dataset_train.targets != noisy.dataset_train.targets
        assert changed.sum() == 24
        assert noisy.dataset_train.targets.min() >= 0 and noisy.dataset_train.targets.max() < 5
        assert torch.equal(clean.dataset_val.targets, noisy.dataset_val.targets)
        assert torch.equal(clean.dataset_test.targets, noisy.dataset_test.targets)
        everyone = Numbered(arguments(label_noise=1.0))
        everyone.setup("fit")
        assert (everyone.dataset_train.targets != clean.dataset_train.targets).all()

    def test_number_of_classes_from_the_targets(self):
        datamodule = Numbered(arguments(), num_classes=None)
        datamodule.setup("fit")
        assert datamodule.num_classes == 5

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda y: functional.one_hot(y), r"targets of shape \(100, 5\).*argmax"),
            (lambda y: y + 0.5, "that is not whole"),
            (lambda y: y * 0, "two classes or more"),
            (lambda y: y[:, None].expand(-1, 2), r"targets of shape \(100, 2\)"),
        ],
    )
    def test_targets_of_a_datamodule_of_ones_own(self, change, message):
        class Own(Numbered):
            def load(self, train):
                data, targets = super().load(train)
                return data, change(targets)

        with pytest.raises(UserError, match=f"^Own: expected .*{message}"):
            Own(arguments()).setup("fit")

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32, torch.float32, torch.bfloat16])
    def test_targets_of_any_type(self, dtype):
        class Own(Numbered):
            def load(self, train):
                data, targets = super().load(train)
                return data, targets.to(dtype)

        datamodule = Own(arguments(val_split=0))
        datamodule.setup("fit")
        assert torch.equal(datamodule.dataset_train.targets, torch.arange(100) % 5)

    def test_targets_out_of_range(self):
        with pytest.raises(UserError, match="from 0 to 3, got 0 to 4"):
            Numbered(arguments(), num_classes=4).setup("fit")

    @pytest.mark.parametrize(
        "change",
        [
            {"val_split": 1},
            {"val_split": -0.1},
            {"val_split": "0.2"},
            {"val_split": float("nan")},
            {"batch_size": 0},
            {"batch_size": 2.5},
            {"batch_size": True},
            {"seed": -1},
            {"label_noise": 1.5},
            {"image_size": 0},
            {"input_channels": 2},
        ],
    )
    def test_impossible_values_name_their_key(self, change):
        (key,) = change
        with pytest.raises(UserError, match=f"^{key}: "):
            Numbered(arguments(**change))


class TestImages:
    def test_grey_repeated_and_resized(self):
        class Grey(Pictures):
            channels = 1

        datamodule = Grey(arguments(input_channels=3, image_size=12), 4)
        datamodule.setup("fit")
        data = datamodule.dataset_train.data
        assert data.shape == (160, 3, 12, 12) and data.dtype == torch.uint8
        assert torch.equal(data[:, 0], data[:, 2])
        assert datamodule.input_dim == 432

    def test_luma(self):
        datamodule = Pictures(arguments(input_channels=1, val_split=0), 4)
        datamodule.setup("fit")
        image = Image.fromarray(noise_images()[0].permute(1, 2, 0).numpy()).convert("L")
        assert datamodule.dataset_train.data.shape == (200, 1, 8, 8)
        assert np.abs(datamodule.dataset_train.data[0, 0].numpy().astype(int) - np.asarray(image)).max() <= 1

    def test_native_size_and_channels_change_nothing(self):
        datamodule = Pictures(arguments(input_channels=3, image_size=8, val_split=0), 4)
        datamodule.setup("fit")
        assert torch.equal(datamodule.dataset_train.data, noise_images())

    def test_shapes_that_are_not_images(self, tmp_path):
        path = save_arrays(tmp_path)
        for change in ({"input_channels": 1}, {"image_size": 4}):
            with pytest.raises(UserError, match=f"{next(iter(change))}: expected null"):
                Arrays(arguments(arrays_path=path, **change)).setup("fit")

    def test_augmentation_moves_pixels_only(self):
        images = noise_images(n=300)
        moved = random_crop_and_flip(images, torch.Generator().manual_seed(0), padding=1)
        assert moved.shape == images.shape and moved.dtype == torch.uint8
        padded = torch.nn.functional.pad(images, (1,) * 4)
        crops = torch.stack([padded[:, :, i : i + 8, j : j + 8] for i in range(3) for j in range(3)])
        crops = torch.cat([crops, crops.flip(-1)])
        hits = (crops == moved).flatten(2).all(-1)
        assert hits.any(0).all()
        assert hits.any(1).all()


class Recorder(pl.LightningModule):
    """Trains one weight, and remembers the order of the samples of each epoch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.orders = {}

    def training_step(self, batch, batch_idx):
        self.orders.setdefault(self.current_epoch, []).extend(batch[0][:, 0, 0, 0].int().tolist())
        return (self.weight - batch[0].mean()) ** 2

    def validation_step(self, batch, batch_idx):
        self.log("val_mean", batch[0].mean())

    def test_step(self, batch, batch_idx):
        self.log("test_mean", batch[0].mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def trainer(tmp_path, max_epochs, **options):
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **options,
    )


class TestOrder:
    def test_sampler(self):
        sampler = EpochRandomSampler(range(50), seed=1)
        first = list(sampler)
        assert sorted(first) == list(range(50)) and list(sampler) == first
        sampler.set_epoch(1)
        assert list(sampler) != first
        assert list(EpochRandomSampler(range(50), seed=2)) != first

    def test_global_generator_is_untouched(self):
        datamodule = CropDigits(arguments(data_augmentation=True))
        datamodule.setup(None)
        state = torch.get_rng_state()
        for loader in (
            datamodule.train_dataloader(),
            datamodule.val_dataloader(),
            datamodule.test_dataloader(),
        ):
            for _ in loader:
                pass
        assert torch.equal(torch.get_rng_state(), state)

    def test_augmentation_is_a_function_of_the_epoch(self):
        datamodule = CropDigits(arguments(data_augmentation=True))
        datamodule.setup("fit")
        loader = datamodule.train_dataloader()

        def epoch(number):
            loader.sampler.set_epoch(number)
            return torch.cat([x for x, _ in loader])

        first, second = epoch(0), epoch(1)
        assert torch.equal(epoch(0), first) and not torch.equal(first, second)
        plain = CropDigits(arguments())
        plain.setup("fit")
        assert not torch.equal(torch.cat([x for x, _ in plain.train_dataloader()]), first)
        assert torch.equal(datamodule.dataset_train[0][0], plain.dataset_train[0][0])

    def test_trainer_sees_a_new_order_each_epoch_and_the_same_when_resumed(self, tmp_path):
        straight, begun, resumed = Recorder(), Recorder(), Recorder()
        whole = trainer(tmp_path, 4)
        whole.fit(straight, datamodule=Numbered(arguments()))
        first = trainer(tmp_path, 2)
        first.fit(begun, datamodule=Numbered(arguments()))
        first.save_checkpoint(tmp_path / "two.ckpt")
        trainer(tmp_path, 4).fit(resumed, datamodule=Numbered(arguments()), ckpt_path=tmp_path / "two.ckpt")
        orders = straight.orders
        assert len({tuple(order) for order in orders.values()}) == 4
        assert len({frozenset(order) for order in orders.values()}) == 1
        assert begun.orders | resumed.orders == orders and set(resumed.orders) == {2, 3}

    def test_trainer_resumes_from_a_callbacks_checkpoint(self, tmp_path):
        straight, resumed = Recorder(), Recorder()
        keep = pl.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, every_n_epochs=1)
        trainer(tmp_path, 3, callbacks=[keep]).fit(straight, datamodule=Numbered(arguments()))
        trainer(tmp_path, 3).fit(resumed, datamodule=Numbered(arguments()), ckpt_path=tmp_path / "epoch=0.ckpt")
        assert resumed.orders == {epoch: straight.orders[epoch] for epoch in (1, 2)}

    @pytest.mark.parametrize("val_split", [0.2, 0])
    def test_fit_validate_test(self, tmp_path, val_split):
        datamodule = Numbered(arguments(val_split=val_split))
        recorder = Recorder()
        run = trainer(tmp_path, 2)
        run.fit(recorder, datamodule=datamodule)
        if val_split:
            run.validate(recorder, datamodule=datamodule, verbose=False)
            expected = datamodule.dataset_val.data.mean()
            assert run.callback_metrics["val_mean"] == pytest.approx(expected.item(), rel=1e-5)
        run.test(recorder, datamodule=datamodule, verbose=False)
        assert run.callback_metrics["test_mean"] == pytest.approx(14.5)
        assert datamodule.num_loads == 2


class CropDigits(Digits):
    def augmentation(self):
        return random_crop_and_flip


def test_digits():
    first, second = Digits(arguments(seed=0)), Digits(arguments(seed=1))
    for datamodule in (first, second):
        datamodule.setup(None)
    assert (len(first.dataset_train), len(first.dataset_val), len(first.dataset_test)) == (1150, 287, 360)
    assert first.input_dim == 64 and first.num_classes == 10
    assert torch.equal(first.dataset_test.data, second.dataset_test.data)
    inputs, _ = first.dataset_train.__getitems__(range(1150))
    assert inputs.min() == -1 and inputs.max() == 1 and inputs.shape == (1150, 1, 8, 8)


class SmallMNIST(MNIST):
    num_images: ClassVar = {"train": 40, "t10k": 20}


def write_idx(path, array):
    path.write_bytes(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


@pytest.fixture
def idx_folder(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in SmallMNIST.num_images.items():
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)
    return folder


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("no network\nat all")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10"])
@pytest.mark.parametrize(("val_split", "count"), [(0, None), (0.25, None), (0.25, 20)])
def test_files_alone_give_the_training_set(idx_folder, png_folder, monkeypatch, name, val_split, count):
    monkeypatch.setitem(MNIST_SIZES, "train", 40)
    args = stored(datamodule=name, data_dir=png_folder, val_split=val_split, train_samples=count)
    datamodule = load_datamodule(name)(args)
    datamodule.setup("fit")
    found, expected = stored_training_set(args), datamodule.dataset_train
    assert torch.equal(found.data, expected.data) and torch.equal(found.targets, expected.targets)


def stored(**changes):
    unchanged = {"image_size": None, "input_channels": None, "label_noise": 0, "train_samples": None}
    return arguments(**unchanged | changes)


def test_what_files_alone_do_not_give(tmp_path):
    assert stored_training_set(stored(datamodule="mnist", data_dir=tmp_path)) is None
    assert stored_training_set(stored(datamodule="arrays", data_dir=tmp_path)) is None
    assert stored_training_set(stored(datamodule="digits", image_size=4)) is None
    assert stored_training_set(stored(datamodule="digits", label_noise=0.1)) is None
    with pytest.raises(UserError, match="train_samples: expected at most the 1437 that are not held out, got 1438"):
        stored_training_set(stored(datamodule="digits", train_samples=1438, val_split=0))


class TestMNIST:
    def test_reads_a_read_only_link(self, idx_folder, tmp_path, offline):
        link = tmp_path / "link"
        link.mkdir()
        (link / "MNIST").symlink_to(idx_folder.parent)
        link.chmod(0o555)
        idx_folder.chmod(0o555)
        before = {path: path.stat().st_mtime_ns for path in (idx_folder, *idx_folder.iterdir())}
        datamodule = SmallMNIST(arguments(data_dir=str(link), val_split=0))
        datamodule.prepare_data()
        datamodule.setup(None)
        idx_folder.chmod(0o755)
        assert {path: path.stat().st_mtime_ns for path in (idx_folder, *idx_folder.iterdir())} == before
        raw = (idx_folder / "train-images-idx3-ubyte").read_bytes()[16:]
        assert datamodule.dataset_train.data.numpy().tobytes() == raw
        assert datamodule.dataset_train.targets.tolist() == [i % 10 for i in range(40)]
        assert datamodule.dataset_test.data.shape == (20, 1, 28, 28)

    def test_absent_and_offline(self, tmp_path, offline):
        with pytest.raises(UserError, match=r"MNIST/raw lacks .*no network at all.*t10k-labels-idx1-ubyte") as error:
            MNIST(arguments(data_dir=tmp_path)).prepare_data()
        assert "\n" not in str(error.value)
        with pytest.raises(UserError, match="train-images-idx3-ubyte is absent"):
            MNIST(arguments(data_dir=tmp_path)).setup("fit")

    @pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
    @pytest.mark.parametrize("kept", [0, 3, 10, 30])
    def test_truncated(self, idx_folder, name, kept):
        path = idx_folder / name
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(UserError, match=f"{name} is truncated or damaged"):
            SmallMNIST(arguments(data_dir=idx_folder.parents[1])).setup("fit")

    def test_wrong_count(self, idx_folder):
        write_idx(idx_folder / "train-labels-idx1-ubyte", np.zeros(39, dtype=np.uint8))
        with pytest.raises(UserError, match=r"train-labels-idx1-ubyte holds \(39,\)"):
            SmallMNIST(arguments(data_dir=idx_folder.parents[1])).setup("fit")

    def test_label_out_of_range(self, idx_folder):
        write_idx(idx_folder / "train-labels-idx1-ubyte", np.full(40, 200, dtype=np.uint8))
        with pytest.raises(UserError, match="targets from 0 to 9"):
            SmallMNIST(arguments(data_dir=idx_folder.parents[1])).setup("fit")


@pytest.fixture
def png_folder(tmp_path):
    images = iter(noise_images(n=60, size=32).permute(0, 2, 3, 1).numpy())
    for part, count in (("train", 4), ("test", 2)):
        for name in CLASSES:
            folder = tmp_path / "cifar10" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(next(images)).save(folder / f"{i}.png")
    return tmp_path


class TestCIFAR10:
    def test_images(self, png_folder, offline):
        datamodule = CIFAR10(arguments(data_dir=png_folder, val_split=0, data_augmentation=True))
        datamodule.prepare_data()
        datamodule.setup(None)
        assert torch.equal(datamodule.dataset_train.data, noise_images(n=60, size=32)[:40])
        assert datamodule.dataset_train.targets.tolist() == [i // 4 for i in range(40)]
        assert datamodule.dataset_test.data.shape == (20, 3, 32, 32)
        assert datamodule.train_dataloader().dataset.augment and not datamodule.dataset_train.augment
        assert next(iter(datamodule.train_dataloader()))[0].shape == (16, 3, 32, 32)
        assert "augmented" in datamodule.load_msg()

    def test_damaged_image(self, png_folder):
        path = png_folder / "cifar10" / "train" / "dog" / "2.png"
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(UserError, match=r"dog/2\.png is not a readable image"):
            CIFAR10(arguments(data_dir=png_folder)).setup("fit")

    def test_image_of_another_size(self, png_folder):
        Image.new("RGB", (40, 20)).save(png_folder / "cifar10" / "test" / "cat" / "1.png")
        with pytest.raises(UserError, match=r"cat/1\.png has 40×20 pixels"):
            CIFAR10(arguments(data_dir=png_folder)).setup("test")

    def test_missing_class(self, png_folder):
        (png_folder / "cifar10" / "train" / "ship").rename(png_folder / "ship")
        with pytest.raises(UserError, match="lacks the folders ship"):
            CIFAR10(arguments(data_dir=png_folder)).setup("fit")

    def test_absent_and_offline(self, tmp_path, offline):
        for attempt in ("prepare_data", "setup"):
            with pytest.raises(UserError, match="cifar-10-batches-py"):
                getattr(CIFAR10(arguments(data_dir=tmp_path)), attempt)()

    def test_what_an_archive_names_is_not_run(self, tmp_path):
        folder = tmp_path / "cifar-10-batches-py"
        folder.mkdir()
        for name, _ in torchvision_datasets.CIFAR10.train_list + torchvision_datasets.CIFAR10.test_list:
            (folder / name).write_bytes(b"cbuiltins\nexit\n(tR.")
        with pytest.raises(UserError, match=r"data_batch_1 refers to builtins\.exit, .*: it was not read"):
            CIFAR10(arguments(data_dir=tmp_path)).setup("fit")


def save_arrays(folder, **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.normal(size=(30, 5)),
        "y_train": np.arange(30) % 3,
        "x_test": rng.normal(size=(10, 5)),
        "y_test": np.arange(10) % 4,
    } | changes
    path = folder / "data.npz"
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


class TestArrays:
    def test_floats(self, tmp_path):
        path = save_arrays(tmp_path)
        datamodule = Arrays(arguments(arrays_path=str(path), val_split=0))
        datamodule.setup("fit")
        assert datamodule.num_classes == 4 and datamodule.input_dim == 5
        inputs, targets = datamodule.dataset_train.__getitems__(range(30))
        assert np.array_equal(inputs.numpy(), np.load(path)["x_train"].astype(np.float32))
        assert targets.tolist() == [i % 3 for i in range(30)]

    def test_pixels_and_other_integers(self, tmp_path):
        pixels = np.full((30, 2, 3), 255, dtype=np.uint8)
        datamodule = Arrays(arguments(arrays_path=save_arrays(tmp_path, x_train=pixels, x_test=pixels[:10])))
        datamodule.setup(None)
        assert datamodule.dataset_test.data.dtype == torch.uint8 and datamodule.input_dim == 6
        assert datamodule.dataset_test[0][0].flatten().tolist() == pytest.approx([1.0] * 6)
        counts = pixels.astype(np.int32)
        datamodule = Arrays(arguments(arrays_path=save_arrays(tmp_path, x_train=counts, x_test=counts[:10])))
        datamodule.setup("test")
        assert datamodule.dataset_test[0][0].flatten().tolist() == [255.0] * 6

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"x_test": None}, "no array x_test"),
            ({"x_train": np.array([[{}]] * 30, dtype=object)}, "pickled arrays are refused"),
            ({"x_train": np.full((30, 5), "a")}, "x_train is <U1, expected numbers"),
            ({"y_train": np.arange(30) / 2}, "y_train has values that are not whole numbers"),
            ({"y_train": np.full(30, np.nan)}, "y_train has values that are not whole numbers"),
            ({"y_train": np.full(30, np.inf)}, "y_train has values that are not whole numbers"),
            ({"y_train": np.full(30, "cat")}, "y_train is <U3, expected class numbers"),
            ({"y_train": np.eye(3)[np.arange(30) % 3]}, r"y_train has shape \(30, 3\).*one-hot rows are y.argmax"),
            ({"y_train": np.zeros((30, 2, 2))}, r"y_train has shape \(30, 2, 2\), expected \(n,\)"),
            ({"y_train": np.zeros(30), "y_test": np.zeros(10)}, "two classes or more, got 24 of class 0 alone"),
            ({"y_train": np.full(30, 2)}, "two classes or more, got 24 of class 2 alone"),
            ({"y_train": 2020 + np.arange(30) % 3}, "class numbers go up to 2022 in 40 samples"),
            ({"y_train": np.zeros(29, dtype=int)}, "x_train has 30 samples and y_train has 29"),
            ({"y_train": np.full(30, -1)}, "targets from 0"),
            ({"x_train": np.full((30, 5), np.nan)}, "NaN or infinite"),
            ({"x_test": np.full((10, 5), 1e300)}, "NaN or infinite"),
            ({"x_test": np.zeros((10, 6))}, "expected the same"),
            ({"x_test": np.zeros((10, 5), dtype=np.uint8)}, "expected the same"),
            ({"x_train": np.zeros(30)}, r"expected \(n, ...\)"),
            ({"x_test": np.zeros((0, 5)), "y_test": np.zeros(0, dtype=int)}, "0 samples"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:overflow")
    def test_refused(self, tmp_path, changes, message):
        datamodule = Arrays(arguments(arrays_path=save_arrays(tmp_path, **changes)))
        with pytest.raises(UserError, match=message) as error:
            datamodule.setup("fit")
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("kind", ["u1", "i1", "u8", "i4", "f2", "f4", "f8", "column"])
    def test_class_numbers_of_any_type(self, tmp_path, kind):
        y = (np.arange(30) % 3, np.arange(10) % 4)
        y = [part[:, None] if kind == "column" else part.astype(kind) for part in y]
        datamodule = Arrays(arguments(arrays_path=save_arrays(tmp_path, y_train=y[0], y_test=y[1]), val_split=0))
        datamodule.setup(None)
        assert datamodule.num_classes == 4 and datamodule.dataset_train.targets.dtype == torch.int64
        assert datamodule.dataset_train.targets.tolist() == [i % 3 for i in range(30)]

    def test_truth_values(self, tmp_path):
        y = np.arange(30) % 2 == 0
        datamodule = Arrays(arguments(arrays_path=save_arrays(tmp_path, y_train=y, y_test=y[:10]), val_split=0))
        datamodule.setup("fit")
        assert datamodule.num_classes == 2 and datamodule.dataset_train.targets.tolist() == y.astype(int).tolist()

    def test_files_that_are_not_archives(self, tmp_path):
        with pytest.raises(UserError, match="arrays_path"):
            Arrays(arguments())
        with pytest.raises(UserError, match="is not a file"):
            Arrays(arguments(arrays_path=tmp_path / "none.npz")).setup("fit")
        np.save(tmp_path / "one.npy", np.zeros(3))
        with pytest.raises(UserError, match=r"not an \.npz file"):
            Arrays(arguments(arrays_path=tmp_path / "one.npy")).setup("fit")

    def test_damaged(self, tmp_path):
        path = save_arrays(tmp_path)
        content = bytearray(path.read_bytes())
        content[300:400] = bytes(100)
        path.write_bytes(content)
        with pytest.raises(UserError, match="x_train is damaged"):
            Arrays(arguments(arrays_path=path)).setup("fit")
