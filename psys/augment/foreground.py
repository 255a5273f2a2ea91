"""Foreground modes: views composed with the image's foreground mask, and controls that use a wrong mask."""

from typing import Annotated, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from psys.augment.cutout import sparing_holes
from psys.augment.draws import draw
from psys.augment.inpaint import backgrounds
from psys.augment.mix import mixing_rectangles, visible_share
from psys.augment.pixels import logical_or, masks_of
from psys.config import Config

Share = Annotated[float, Field(ge=0, le=1)]
MODES = ("black", "mean", "swap", "keep", "mix", "shuffled_mask", "box_mask")


class ForegroundConfig(Config):
    """Share of the views, 0 to 1, for each mode; a view without a usable mask or partner image is left unchanged."""

    black: Share = 0.0
    """The foreground on black, as in the original paper."""
    mean: Share = 0.0
    """The foreground on the mean colour."""
    swap: Share = 0.0
    """The foreground on the background of another image of the batch, whose own foreground is inpainted."""
    swap_same_class: bool = False
    """Take the background from an image of the same class; if the batch has none, the view is unchanged."""
    keep: Share = 0.0
    """Cutout whose square of `cutout_size` pixels hides at most the share `keep_erased` of the foreground."""
    keep_erased: Share = 0.25
    """Largest share of the foreground, 0 to 1, that `keep` hides; if no square satisfies it, nothing is hidden."""
    mix: Share = 0.0
    """CutMix with another image of the batch; labels weighted by visible foreground, or by area without masks."""
    shuffled_mask: Share = 0.0
    """Control for `black`: the mask of another image of the batch is used."""
    box_mask: Share = 0.0
    """Control for `black`: the bounding box of the mask is used."""

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if (total := sum(self.shares.values())) > 1 + 1e-9:
            shares = ", ".join(f"{mode} {share:g}" for mode, share in self.shares.items())
            raise ValueError(f"the shares of the modes must not exceed 1 together, but {shares} are {total:g}")
        return self

    @property
    def shares(self) -> dict[str, float]:
        """The modes in use and their shares of the views."""
        return {mode: share for mode in MODES if (share := getattr(self, mode))}


class Views(NamedTuple):
    """V views of a batch after the foreground modes were applied."""

    words: Tensor  # (V, H, W) int32, see `pixels`
    labels: Tensor  # (V,) int64, or with `mix` (V, classes) float32 whose rows sum to 1
    is_plain: Tensor  # (V,) bool: no mode was applied


def apply_modes(
    originals: Tensor,
    moved: Tensor,
    labels: Tensor,
    usable: Tensor,
    mean: int,
    config: ForegroundConfig,
    cutout_size: int,
    classes: int,
    generator: torch.Generator,
) -> Views:
    """Apply each mode to its share of the V views of B images.

    originals: (B, H, W) int32 words (see `pixels`); moved: (V, H, W) int32, the same images after flip, shift and
    rotation, with V a multiple of B; labels: (B,) int64; usable: (B,) bool; mean: the word of the mean colour.
    `swap` takes the background of the other image's original; `mix` and `shuffled_mask` take the other moved view.
    Nothing synchronises with the GPU, and the amount of work does not depend on the random draws.
    """
    count, images = len(moved), len(originals)
    repeats, device = count // images, moved.device
    has_mask, targets = usable.repeat(repeats), labels.repeat(repeats)
    words, is_plain = moved, torch.ones_like(has_mask)
    if not config.shares:
        return Views(words, targets, is_plain)
    masks = masks_of(moved)
    if config.mix:
        targets = (targets[:, None] == torch.arange(classes, device=device)).float()
    same_repeat = torch.arange(count, device=device) // images * images  # first view of the same repeat

    def draw_other(allowed: Tensor) -> tuple[Tensor, Tensor]:
        """For each view another image among the `allowed` (B or 1, B), and whether there is one."""
        return draw(allowed & ~torch.eye(images, dtype=torch.bool, device=device), repeats, generator)

    drawn = torch.rand(count, device=device, generator=generator)
    for mode, share in config.shares.items():
        chosen = (drawn >= 0) & (drawn < share)
        drawn = drawn - share
        if mode != "mix":
            chosen &= has_mask
        match mode:
            case "black":
                words = words * _shown(masks, chosen)
            case "box_mask":
                words = words * _shown(boxes(masks), chosen)
            case "shuffled_mask":
                other, found = draw_other(usable)
                chosen &= found
                words = words * _shown(masks.index_select(0, same_repeat + other), chosen)
            case "mean":
                words = torch.where(_shown(masks, chosen), words, mean)
            case "keep":
                hidden = sparing_holes(chosen, masks, cutout_size, config.keep_erased, generator)
                words = torch.where(hidden, mean, words)
            case "swap":
                other, found = draw_other(usable & (labels[:, None] == labels) if config.swap_same_class else usable)
                chosen &= found
                words = torch.where(_shown(masks, chosen), words, backgrounds(originals).index_select(0, other))
            case "mix":
                other, found = draw_other(torch.ones_like(usable))
                chosen &= found
                other = same_repeat + other
                rectangles = mixing_rectangles(chosen, (masks.shape[1], masks.shape[2]), generator)
                words = torch.where(rectangles, moved.index_select(0, other), words)
                others = masks.index_select(0, other)
                weights = visible_share(masks, others, rectangles, has_mask & has_mask[other])[:, None]
                targets = targets * (1 - weights) + targets[other] * weights
            case _:
                raise AssertionError(mode)
        is_plain &= ~chosen
    return Views(words, targets, is_plain)


def boxes(masks: Tensor) -> Tensor:
    """The bounding box of each mask, (B, H, W) bool -> (B, H, W) bool; an empty mask has an empty box."""

    def between(occupied: Tensor) -> Tensor:  # (B, length): True from the first to the last occupied index
        counted = occupied.cumsum(dim=1)
        return (counted > 0) & (counted - occupied.long() < counted[:, -1:])

    return between(masks.any(dim=2))[:, :, None] & between(masks.any(dim=1))[:, None, :]


def _shown(masks: Tensor, chosen: Tensor) -> Tensor:
    return logical_or(masks, ~chosen[:, None, None])
