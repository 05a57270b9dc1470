import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from milkshake_mbp.codec import (
    CertifiedNetwork,
    CodedLayer,
    CodedNetwork,
    DecodeError,
    InputMap,
    code_bits,
    encode,
    export_certificate,
    from_file_bytes,
    load_certificate,
    to_file_bytes,
)
from milkshake_mbp.theory.tail import tail_bound
from tests.codec.networks import random_convolutional

ROOT = Path(__file__).parents[2]
GALLERY = sorted((ROOT / "docs" / "certificates").glob("*.mbp"))


def samples(inputs: InputMap, count: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, inputs.channels, inputs.height, inputs.width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def on_pixels(count):
    networks = (random_convolutional(seed) for seed in range(1000))
    return [network for network, _ in zip((n for n in networks if n.inputs.pixels), range(count), strict=False)]


def test_a_file_is_a_module_that_computes_its_network(tmp_path):
    for network in on_pixels(20):
        path = tmp_path / "certificate.mbp"
        path.write_bytes(to_file_bytes(encode(network)))
        module, data = load_certificate(path), samples(network.inputs, 5, 0)
        assert torch.equal(module(data), network.logits(data)) and not list(module.parameters())
    path.write_bytes(b"junk")
    with pytest.raises(DecodeError):
        load_certificate(path)


def test_an_exported_network_is_the_same_network(tmp_path):
    networks = {network.inputs.bank: network for network in on_pixels(60)}
    assert set(networks) == {0, 1, 2}
    for network in networks.values():
        export_certificate(CertifiedNetwork(network), tmp_path / "network.pt")
        data = samples(network.inputs, 130, 5)
        # Loaded where nothing of this package is, as TorchScript holds all of it.
        with torch.jit.optimized_execution(False):
            assert torch.equal(torch.jit.load(tmp_path / "network.pt")(data), network.logits(data))
    with pytest.raises(ValueError, match="not stored pixels"):
        real = next(n for n in map(random_convolutional, range(100)) if not n.inputs.pixels)
        export_certificate(CertifiedNetwork(real), tmp_path / "real.pt")


def test_batches_change_nothing():
    for seed, network in enumerate(on_pixels(40)):
        data = samples(network.inputs, 23, seed)
        whole = network.logits(data)
        assert torch.equal(whole, torch.cat([network.logits(some) for some in data.split(1)]))
        assert torch.equal(whole, torch.cat([network.logits(some) for some in data.split(7)]))
        # Where float32 is enough it is used, and float64 says the same.
        torch.set_float32_matmul_precision("high")
        try:
            assert torch.equal(whole, network.logits(data))
        finally:
            torch.set_float32_matmul_precision("highest")


@pytest.mark.long
def test_threads_change_nothing():
    script = (
        "import sys, torch, hashlib\n"
        "torch.set_num_threads(int(sys.argv[1]))\n"
        "from tests.codec.test_module import on_pixels, samples\n"
        "found = [n.logits(samples(n.inputs, int(sys.argv[2]), 3)[:200]) for n in on_pixels(10)]\n"
        "print(hashlib.sha256(b''.join(logits.numpy().tobytes() for logits in found)).hexdigest())\n"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", script, threads, "200"], capture_output=True, text=True, cwd=ROOT, check=True
        ).stdout
        for threads in "12"
    }
    assert len(said) == 1


def test_sorting_channels_changes_nothing_but_the_length():
    r = random.Random(0)
    for network in on_pixels(40):
        data, canonical = samples(network.inputs, 5, r.randrange(99)), network.canonical()
        assert torch.equal(network.logits(data), canonical.logits(data))
        assert canonical.canonical() == canonical
        assert torch.equal(network.live().logits(data), network.logits(data))
    # Twelve channels have 12! orders, of 28 bits; what sorting them saves is not less than half of that.
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(-1, 2, (12, 9), generator=generator)
    second = torch.randint(-1, 2, (3, 12), generator=generator)
    biases = torch.tensor([3, -1, 4, 0, -5, 2, 6, -3, 1, 5, -2, -4])
    layers = (CodedLayer(first, biases, None), CodedLayer(second, torch.tensor([0, 1, 0]), None))
    network = CodedNetwork(InputMap(1, 3, 3), layers)
    saved = sum(code_bits(network).values()) - sum(code_bits(network.canonical()).values())
    assert saved > 14


@pytest.mark.parametrize("path", GALLERY, ids=lambda path: path.stem)
def test_the_gallery_is_readable_for_ever(path):
    network, length = from_file_bytes(path.read_bytes())
    assert network.exact and encode(network) == path.read_bytes()[:length]
    # The table says what the bytes and the errors that it names guarantee.
    row = next(line for line in (path.parent / "README.md").read_text().splitlines() if path.name in line)
    _, _, bits, errors, n, _, bound, *_ = (cell.strip().strip("*").replace(",", "") for cell in row.split("|"))
    assert int(bits) == 8 * length
    assert float(bound) - 1e-4 < tail_bound(int(errors), 8 * length, int(n), 0.05) <= float(bound)
