"""The fixed filters: whole numbers, the same for every batch and type, and what they are meant to see."""

import re
from pathlib import Path

import pytest
import torch

from milkshake_mbp.codec import InputMap
from milkshake_mbp.codec.banks import BANKS, colour_bank, grey_bank

PAGE = Path(__file__).parents[2] / "docs" / "certificate.md"


def extreme_images(channels: int, side: int):
    """Where sums are largest: black and white, stripes and checks of several widths, and noise."""
    generator = torch.Generator().manual_seed(0)
    i, j = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    planes = [torch.zeros(side, side), torch.ones(side, side)]
    for width in (1, 2, 3, 5):
        planes += [(i // width) % 2, (j // width) % 2, (i // width + j // width) % 2, ((i + j) // width) % 2]
    planes = torch.stack([plane.float() for plane in planes])[:, None].repeat(1, channels, 1, 1)
    signs = torch.rand(len(planes), channels, 1, 1, generator=generator).round()
    planes = torch.cat([255 * planes, 255 * (planes - signs).abs()])
    noise = torch.randint(0, 256, (10, channels, side, side), generator=generator)
    return torch.cat([planes, noise, 255 * (noise > 127)]).to(torch.uint8)


@pytest.mark.parametrize("bank", [1, 2])
@pytest.mark.parametrize(("side", "cell"), [(8, 2), (13, 4)])
def test_the_page_and_the_package_see_the_same(bank, side, cell):
    names = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)), names)
    images = extreme_images(BANKS[bank - 1].channels, side)
    images = torch.cat([images[::3], images[-20:-10] // 64])  # faint ones, where what is rounded shows
    found = BANKS[bank - 1](images, cell)
    for image, maps in zip(images.tolist(), found.tolist(), strict=True):
        assert maps == (names["grey_bank"](image[0], cell) if bank == 1 else names["colour_bank"](image, cell))


@pytest.mark.parametrize("bank", BANKS)
def test_single_and_double_precision_agree(bank):
    images = extreme_images(bank.channels, 32)
    whole = bank(images, 4)
    assert torch.equal(whole, whole.round()) and whole.min() >= 0 and whole.max() <= 255
    torch.set_float32_matmul_precision("high")
    try:
        assert torch.equal(whole, bank(images, 4))
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(whole, torch.cat([bank(image[None], 4) for image in images]))


def test_an_edge_is_seen_in_its_direction():
    image = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    image[..., 8:] = 200
    for bank, channels in ((grey_bank, 1), (colour_bank, 3)):
        found = bank(image.expand(-1, channels, -1, -1).double(), 4)[0, : 8 if channels == 1 else 4]
        # Away from the border, which is an edge too where zeros follow.
        found = found[:, 1:3, 1:3].sum(dim=(1, 2))
        # Half as much at 45 degrees, where the response is a root of a half and its ratio to the strongest another.
        assert int(found.argmax()) == 0 and found[0] >= 1.8 * found[1] and found[2] == 0


def test_grey_images_have_no_colour_and_light_is_relative():
    generator = torch.Generator().manual_seed(1)
    grey = torch.randint(0, 120, (4, 1, 16, 16), generator=generator).expand(-1, 3, -1, -1).double()
    found = colour_bank(grey, 4)
    assert not found[:, 24:30].any()
    # Twice the contrast changes orientations and relative lightness by what is rounded, and the contrast by a factor.
    twice = colour_bank(2 * grey, 4)
    assert float((twice[:, :24] - found[:, :24]).abs().max()) <= 2
    assert float((twice[:, 30:32] - found[:, 30:32]).abs().max()) <= 2
    assert float((twice[:, 33] - 2 * found[:, 33]).abs().max()) <= 2


def test_a_bank_refuses_other_images():
    for keys in ({"channels": 1, "cell": 4}, {"channels": 3, "cell": 3}, {"channels": 3, "cell": 4, "pool": 2}):
        with pytest.raises(ValueError, match="bank 2"):
            InputMap(keys.pop("channels"), 16, 16, bank=2, **keys)
    with pytest.raises(ValueError, match="bank 2"):
        InputMap(3, 5000, 5000, bank=2, cell=500)
