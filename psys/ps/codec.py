"""Wire formats: how a slice of the flat gradient or of the flat parameters becomes the bytes that travel."""

import math
from typing import Literal, Protocol

import torch
from torch import Tensor

Wire = Literal["fp32", "bf16", "fp16", "topk"]

_BLOCK = 1 << 17  # elements: temporaries of one block stay in a core's cache
_SAMPLE = 1 << 15  # elements looked at to estimate a top-k threshold


class Codec(Protocol):
    """Turns a vector into a payload of fixed size and back.

    vector, out: (n,) float32 on the CPU; payload: (nbytes(n),) uint8, contiguous, 4-byte aligned; n >= 1.
    """

    def nbytes(self, numel: int) -> int:
        """Bytes of the payload of `numel` elements; a multiple of 4."""

    def encode(self, vector: Tensor, payload: Tensor) -> None:
        """Write `vector` into `payload`; what is not sent may be remembered for the next time."""

    def decode(self, payload: Tensor, out: Tensor) -> Tensor:
        """The vector in `payload`: a view of it where no conversion is needed, else `out`, filled."""

    def elements(self, payload: Tensor, numel: int) -> Tensor | None:
        """The payload as a vector (numel,) of a float dtype, to be read and written element by element; None if it is
        more than that."""


def gradient_codec(wire: Wire, topk_share: float) -> Codec:
    """The codec of one worker's gradients for one server's slice. Raises ValueError on an unknown `wire`."""
    return TopK(topk_share) if wire == "topk" else parameter_codec(wire)


def parameter_codec(wire: Wire) -> Codec:
    """The codec of parameters; `topk` sends them whole: they have no small part that can wait. Raises ValueError."""
    match wire:
        case "fp32" | "topk":
            return Fp32()
        case "bf16":
            return Bf16()
        case "fp16":
            return Fp16()
    raise ValueError(f"unknown wire format {wire!r}: choose fp32, bf16, fp16 or topk")


class Fp32:
    """4 bytes per element, exact. A vector that already lies in the payload is not copied."""

    def nbytes(self, numel: int) -> int:
        return 4 * numel

    def encode(self, vector: Tensor, payload: Tensor) -> None:
        target = payload.view(torch.float32)
        if target.data_ptr() != vector.data_ptr():
            target.copy_(vector)

    def decode(self, payload: Tensor, out: Tensor) -> Tensor:
        return payload.view(torch.float32)

    def elements(self, payload: Tensor, numel: int) -> Tensor:
        return payload.view(torch.float32)


class Bf16:
    """2 bytes per element: float32's range with 8 significant bits, rounded to nearest.

    Relative error at most 2^-8 at any scale, so gradients need no scaling; what is below float32's smallest normal
    number (2^-126) may become 0. Source: Kalamkar et al. 2019, "A Study of BFLOAT16 for Deep Learning Training".
    """

    def nbytes(self, numel: int) -> int:
        return 4 * math.ceil(numel / 2)

    def encode(self, vector: Tensor, payload: Tensor) -> None:
        self.elements(payload, vector.numel()).copy_(vector)

    def decode(self, payload: Tensor, out: Tensor) -> Tensor:
        return out.copy_(self.elements(payload, out.numel()))

    def elements(self, payload: Tensor, numel: int) -> Tensor:
        return payload.view(torch.bfloat16)[:numel]


class Fp16:
    """2 bytes per element and 4 for a scale: 11 significant bits, rounded to nearest.

    The vector is scaled by the power of two that brings its largest magnitude into [2^14, 2^15), below half precision's
    maximum of 65504, so nothing overflows. The error of an element is at most 2^-11 of its value or 2^-39 of the
    largest magnitude, whichever is more. A vector with a NaN or an infinity comes out with one.
    Source: scaling as in Micikevicius et al. 2018, "Mixed Precision Training".
    """

    def nbytes(self, numel: int) -> int:
        return 4 + 4 * math.ceil(numel / 2)

    def encode(self, vector: Tensor, payload: Tensor) -> None:
        low, high = torch.aminmax(vector)
        _, exponent = math.frexp(max(-low.item(), high.item()))
        shift = min(15 - exponent, 126)  # of vectors all below 2^-111: neither the scale nor its inverse may overflow
        scale = math.ldexp(1.0, shift)
        payload[:4].view(torch.float32).fill_(1 / scale)
        halves = payload[4:].view(torch.float16)[: vector.numel()]
        for half, block in zip(halves.split(_BLOCK), vector.split(_BLOCK), strict=True):
            half.copy_(block * scale)

    def decode(self, payload: Tensor, out: Tensor) -> Tensor:
        inverse = payload[:4].view(torch.float32).item()
        halves = payload[4:].view(torch.float16)[: out.numel()]
        for half, block in zip(halves.split(_BLOCK), out.split(_BLOCK), strict=True):
            block.copy_(half).mul_(inverse)
        return out

    def elements(self, payload: Tensor, numel: int) -> None:
        return None  # without the scale they say nothing


class TopK:
    """8 bytes per element sent, 8 * share per element of the vector: int32 indices, then float32 values.

    Sends the k = max(1, ceil(share * n)) entries of largest magnitude of residual + vector, the lower index first among
    equals, exactly; the rest is the new residual (error feedback): what was sent and the residual add up to all
    gradients so far, and every entry arrives in the end, but small ones late. Non-finite entries count as largest.
    The residual belongs to the instance: one per worker and slice. `undo` takes back a push that was refused as late.
    What a push sent that was refused otherwise is lost, and what it kept back goes with the next: after a worker was
    taken for dead, top-k is approximate where other formats are exact.
    Raises ValueError if `share` is not in (0, 1].
    Sources: Aji & Heafield 2017, "Sparse Communication for Distributed Gradient Descent"; Stich et al. 2018,
    "Sparsified SGD with Memory"; the threshold from a sample is that of Lin et al. 2018, "Deep Gradient Compression".
    """

    def __init__(self, share: float) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"the share of entries that top-k sends must be in (0, 1], got {share}")
        self._share = share
        self._residual: Tensor | None = None

    def nbytes(self, numel: int) -> int:
        return 8 * self._kept(numel)

    def encode(self, vector: Tensor, payload: Tensor) -> None:
        if self._residual is None:
            self._residual = torch.zeros_like(vector)
        kept = self._kept(vector.numel())
        candidates = _add_and_find(self._residual, vector, _sampled_threshold(self._residual, vector, kept))
        if candidates.numel() < kept:
            candidates = torch.arange(vector.numel())
        chosen = candidates[_largest(_magnitude(self._residual[candidates]), kept)]
        indices, values = payload.view(torch.int32).split(kept)
        indices.copy_(chosen)
        torch.index_select(self._residual, 0, chosen, out=values.view(torch.float32))
        self._residual.index_fill_(0, chosen, 0)

    def undo(self, vector: Tensor, payload: Tensor) -> None:
        """`encode` made `payload` of `vector`, which was not applied and is computed anew by whoever computes it.

        What the payload has of earlier vectors goes back into the residual, and what the residual has of `vector` goes
        out: nothing is lost and nothing counts twice, up to rounding.
        """
        assert self._residual is not None
        indices, values = payload.view(torch.int32).split(self._kept(vector.numel()))
        self._residual.index_add_(0, indices.long(), values.view(torch.float32)).sub_(vector)

    def decode(self, payload: Tensor, out: Tensor) -> Tensor:
        """The vector, 0 where nothing was sent. Raises ValueError, `out` untouched, if an index is out of range."""
        indices, values = payload.view(torch.int32).split(self._kept(out.numel()))
        low, high = (int(bound) for bound in torch.aminmax(indices))
        if low < 0 or high >= out.numel():
            raise ValueError(f"damaged top-k payload: indices from {low} to {high} for {out.numel()} elements")
        return out.zero_().index_copy_(0, indices.long(), values.view(torch.float32))

    def elements(self, payload: Tensor, numel: int) -> None:
        return None

    def _kept(self, numel: int) -> int:
        return max(1, math.ceil(self._share * numel))


def _magnitude(vector: Tensor) -> Tensor:
    """|vector| as int32 of the same order, in which NaN is above infinity: IEEE 754 magnitudes order as their bits."""
    return vector.abs().view(torch.int32)


def _sampled_threshold(residual: Tensor, vector: Tensor, kept: int) -> int:
    """A magnitude that most likely at least `kept` entries of residual + vector reach, and few more."""
    stride = vector.numel() // _SAMPLE | 1  # odd, to cut across rows and channels, whose lengths are even
    sample = _magnitude(residual[::stride] + vector[::stride])
    expected = sample.numel() * kept / vector.numel()
    rank = min(sample.numel(), math.ceil(expected + 4 * math.sqrt(expected)))  # 4 standard deviations on the safe side
    return int(sample.kthvalue(sample.numel() - rank + 1).values)


def _add_and_find(residual: Tensor, vector: Tensor, threshold: int) -> Tensor:
    """Add `vector` to `residual`; the ascending int64 indices of the sums whose magnitude reaches `threshold`."""
    found = [
        (_magnitude(total.add_(block)) >= threshold).nonzero().flatten().add_(position * _BLOCK)
        for position, (total, block) in enumerate(zip(residual.split(_BLOCK), vector.split(_BLOCK), strict=True))
    ]
    return torch.cat(found)


def _largest(magnitudes: Tensor, count: int) -> Tensor:
    """Mask of exactly the `count` largest; of those equal to the smallest of them, the first."""
    least = magnitudes.kthvalue(magnitudes.numel() - count + 1).values
    mask = magnitudes > least
    equal = (magnitudes == least).nonzero().flatten()
    mask[equal[: count - int(mask.count_nonzero())]] = True
    return mask
