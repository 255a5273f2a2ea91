import torch
from torch import Tensor

from psys.augment.inpaint import backgrounds
from psys.augment.pixels import colours_of, masks_of, pack


def test_only_foreground_and_adjacent_pixels_are_filled(images: Tensor) -> None:
    masks = torch.zeros(images.shape[:3], dtype=torch.bool)
    masks[:, 8:20, 10:25] = True
    filled = backgrounds(pack(images, masks))
    assert not masks_of(filled).any()
    beside = torch.zeros_like(masks)
    beside[:, 7:21, 9:26] = True
    beside[:, [7, 7, 20, 20], [9, 25, 9, 25]] = False  # neighbours along a side, not diagonal ones
    pixels = colours_of(filled)
    assert torch.equal(pixels[~beside], images[~beside])
    lowest, highest = (
        each.float()
        for each in (
            images.masked_fill(masks[..., None], 255).amin((1, 2)),
            images.masked_fill(masks[..., None], 0).amax((1, 2)),
        )
    )
    inpainted = pixels[:, 8:20, 10:25].float()
    assert bool((inpainted >= lowest[:, None, None]).all() & (inpainted <= highest[:, None, None]).all())


def test_filled_pixels_do_not_depend_on_the_foreground(images: Tensor) -> None:
    masks = torch.zeros(images.shape[:3], dtype=torch.bool)
    masks[:, 5:27, 5:27] = True
    other = images.clone()
    other[masks] = 255 - other[masks]
    assert torch.equal(backgrounds(pack(images, masks)), backgrounds(pack(other, masks)))


def test_constant_background_is_restored() -> None:
    sky = torch.tensor([90, 150, 220], dtype=torch.uint8)
    for height, width in ((32, 32), (7, 50), (1, 9), (224, 224)):
        images = sky.expand(3, height, width, 3).clone()
        masks = torch.ones(3, height, width, dtype=torch.bool)
        masks[:, 0, 0] = False
        images[masks] = 7
        inpainted = colours_of(backgrounds(pack(images, masks)))[masks]
        assert (inpainted.int() - sky.int()).abs().max() <= 1


def test_image_without_background_is_black() -> None:
    everything = pack(torch.full((2, 5, 6, 3), 200, dtype=torch.uint8), torch.ones(2, 5, 6, dtype=torch.bool))
    assert not backgrounds(everything).any()
