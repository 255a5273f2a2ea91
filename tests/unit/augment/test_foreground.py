import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from psys.augment.foreground import MODES, ForegroundConfig, Views, apply_modes, boxes
from psys.augment.inpaint import backgrounds
from psys.augment.pixels import colours_of, masks_of, pack

GREY = 0x00808080
CLASSES = 10
CUTOUT_SIZE = 16


class Batch:
    """Real images without flip and shift; the masks are their bright pixels, and every third is not usable."""

    def __init__(self, images: Tensor, repeats: int = 1) -> None:
        self.masks = images.amax(dim=3) > 120
        self.words = pack(images, self.masks)
        self.moved = self.words.repeat(repeats, 1, 1)
        self.labels = torch.arange(len(images)) % CLASSES
        self.usable = torch.arange(len(images)) % 3 > 0
        self.is_usable = self.usable.repeat(repeats)

    def apply(self, seed: int = 1, **shares: float) -> Views:
        generator = torch.Generator().manual_seed(seed)
        config = ForegroundConfig(**shares)
        return apply_modes(
            self.words, self.moved, self.labels, self.usable, GREY, config, CUTOUT_SIZE, CLASSES, generator
        )


@pytest.fixture
def batch(images: Tensor) -> Batch:
    return Batch(images)


@pytest.mark.parametrize(("mode", "fill"), [("black", 0), ("mean", GREY)])
def test_background_is_filled_and_foreground_unchanged(batch: Batch, mode: str, fill: int) -> None:
    views = batch.apply(1, **{mode: 1.0})
    cut, masks = views.words[batch.usable], batch.masks[batch.usable]
    assert torch.equal(cut[masks], batch.words[batch.usable][masks])
    assert bool((cut[~masks] == fill).all())
    assert torch.equal(views.is_plain, ~batch.usable)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "mix"])
def test_image_without_usable_mask_is_unchanged(batch: Batch, mode: str) -> None:
    views = batch.apply(1, **{mode: 1.0})
    assert torch.equal(views.words[~batch.usable], batch.words[~batch.usable])
    assert bool(views.is_plain[~batch.usable].all())
    batch.usable = torch.zeros_like(batch.usable)
    assert torch.equal(batch.apply(1, **{mode: 1.0}).words, batch.words)


@pytest.mark.parametrize("mode", ["swap", "shuffled_mask", "mix"])
def test_single_image_without_partner_is_unchanged(images: Tensor, mode: str) -> None:
    alone = Batch(images[1:2], repeats=3)
    alone.usable = torch.ones(1, dtype=torch.bool)
    views = alone.apply(1, **{mode: 1.0})
    assert torch.equal(views.words, alone.moved)
    assert bool(views.is_plain.all())
    assert torch.equal(views.labels if views.labels.dim() == 1 else views.labels.argmax(1), alone.labels.repeat(3))


@pytest.mark.parametrize("same_class", [False, True])
def test_swapped_background_is_from_another_usable_image(images: Tensor, same_class: bool) -> None:
    batch = Batch(images[:60], repeats=2)
    views = batch.apply(swap=1.0, swap_same_class=same_class)
    candidates = backgrounds(batch.words)
    for view in torch.nonzero(batch.is_usable).flatten().tolist():
        image = view % 60
        mask = batch.masks[image]
        assert torch.equal(views.words[view][mask], batch.words[image][mask])
        fits = (candidates[:, ~mask] == views.words[view][~mask]).all(dim=1) & batch.usable
        fits &= torch.arange(60) != image
        if same_class:
            fits &= batch.labels == batch.labels[image]
        assert bool(fits.any())
    used = views.words[:60][batch.usable] != views.words[60:][batch.usable]
    assert used.flatten(1).any(dim=1).float().mean() > 0.5  # views draw independently


def test_keep_erases_at_most_its_share(batch: Batch) -> None:
    for most in (0.0, 0.1, 0.5):
        views = batch.apply(keep=1.0, keep_erased=most)
        erased = views.words != batch.words
        assert bool((views.words[erased] == GREY).all())
        of_foreground = (erased & batch.masks).sum(dim=(1, 2)) / batch.masks.sum(dim=(1, 2)).clamp_min(1)
        assert of_foreground.max() <= most + 1e-6
        assert erased[batch.usable].any()
    assert of_foreground.max() > 0.3  # a limit of one half is used


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(2, 40), share=st.floats(0.1, 1))
def test_mixed_views_and_labels_are_consistent(images: Tensor, seed: int, size: int, share: float) -> None:
    batch = Batch(images[:size], repeats=2)
    batch.labels = torch.arange(size) % 7
    views = batch.apply(seed, mix=share)
    assert views.labels.dtype == torch.float32
    torch.testing.assert_close(views.labels.sum(dim=1), torch.ones(2 * size))
    assert bool(((views.labels > 0).sum(dim=1) <= 2).all())
    assert torch.equal(views.words[views.is_plain], batch.moved[views.is_plain])
    assert bool((views.labels[views.is_plain].amax(dim=1) == 1).all())
    for view in torch.nonzero(~views.is_plain).flatten().tolist():
        changed = views.words[view] != batch.moved[view]
        if changed.any():
            rectangle = boxes(changed[None])[0]
            fits = (batch.words[:, rectangle] == views.words[view][rectangle]).all(dim=1)
            fits[view % size] = False
            assert bool(fits.any())


def test_mixed_label_is_weighted_by_visible_foreground(images: Tensor) -> None:
    batch = Batch(images[:2])
    batch.usable = torch.tensor([True, True])
    for seed in range(20):
        views = batch.apply(seed, mix=1.0)
        for view, other in ((0, 1), (1, 0)):
            # The images have no equal pixels, so every pixel of the view is from one known image.
            assert not (batch.words[0] == batch.words[1]).any()
            from_other = views.words[view] == batch.words[other]
            own, others = (batch.masks[view] & ~from_other).sum(), (batch.masks[other] & from_other).sum()
            if own + others:
                assert views.labels[view, other].item() == pytest.approx((others / (own + others)).item())


def test_shuffled_mask_is_from_another_image(batch: Batch) -> None:
    views = batch.apply(shuffled_mask=1.0)
    masks = {mask.numpy().tobytes() for mask in batch.masks[batch.usable]}
    differs = 0
    for index in torch.nonzero(batch.usable).flatten().tolist():
        shown = views.words[index] != 0
        originally = batch.words[index] != 0  # the word of a black background pixel is 0
        fits = ((batch.masks & originally) == shown).flatten(1).all(dim=1) & batch.usable
        fits[index] = False
        assert bool(fits.any())
        differs += int((shown != (batch.masks[index] & originally)).any())
    assert differs > 0.95 * int(batch.usable.sum())
    assert len(masks) > 100


def test_box_mask_is_the_bounding_box(batch: Batch) -> None:
    masks = torch.cat([batch.masks, torch.zeros(1, 32, 32, dtype=torch.bool)])
    expected = torch.zeros_like(masks)
    for index, mask in enumerate(masks):
        if mask.any():
            rows, columns = (torch.nonzero(mask.any(dim=side)).flatten() for side in (1, 0))
            expected[index, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    assert torch.equal(boxes(masks), expected)
    views = batch.apply(box_mask=1.0)
    shown = torch.where(expected[:-1], batch.words, 0)
    assert torch.equal(views.words[batch.usable], shown[batch.usable])


def test_every_mode_has_its_share_and_modes_are_disjoint(images: Tensor) -> None:
    batch = Batch(images, repeats=8)
    batch.usable, count = torch.ones_like(batch.usable), len(batch.moved)
    for mode in MODES:
        assert (~batch.apply(1, **{mode: 0.2}).is_plain).float().mean().item() == pytest.approx(0.2, abs=0.03)
    views = batch.apply(1, **dict.fromkeys(MODES, 0.1))
    assert views.is_plain.float().mean().item() == pytest.approx(0.3, abs=0.03)
    # The modes are chosen by disjoint intervals of one uniform draw.
    drawn = torch.rand(count, generator=torch.Generator().manual_seed(1))
    assert torch.equal(~views.is_plain, drawn < 0.7)


def test_moved_masks_are_used(images: Tensor) -> None:
    batch = Batch(images)
    batch.moved = batch.words.roll(9, dims=2)
    views = batch.apply(black=1.0)
    assert torch.equal(views.words[batch.usable], (batch.moved * masks_of(batch.moved))[batch.usable])
    assert not torch.equal(colours_of(views.words), colours_of(batch.apply(seed=2, mean=1.0).words))
