import math
from collections.abc import Iterator
from typing import get_args

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from psys.data.sample import read_sample
from psys.ps.codec import Codec, TopK, Wire, gradient_codec, parameter_codec

WIRES: tuple[Wire, ...] = get_args(Wire)
LONG = 150_001  # more than a block, odd, and far more than the sample that the threshold is estimated from

# Nearer to float32's maximum of almost 2^128, a format of fewer bits rounds up to infinity.
floats = st.floats(-(2.0**127), 2.0**127, width=32)
vectors = st.lists(floats, min_size=1, max_size=50).map(lambda values: torch.tensor(values, dtype=torch.float32))


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads, and on a busy machine lose much."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def payload_for(codec: Codec, numel: int) -> Tensor:
    return torch.full((codec.nbytes(numel),), 0xA5, dtype=torch.uint8)


def round_trip(codec: Codec, vector: Tensor) -> Tensor:
    payload = payload_for(codec, len(vector))
    codec.encode(vector, payload)
    return codec.decode(payload, torch.full_like(vector, 7.0)).clone()


def uneven(numel: int, seed: int = 0) -> Tensor:
    """Magnitudes that differ a millionfold from place to place, as between the layers of a network."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(numel, generator=generator) * torch.logspace(-6, 0, numel)


@pytest.mark.parametrize(
    ("wire", "sizes"),
    [("fp32", (4, 8, 404)), ("bf16", (4, 4, 204)), ("fp16", (8, 8, 208)), ("topk", (8, 8, 88))],
)
def test_payload_sizes(wire: Wire, sizes: tuple[int, int, int]) -> None:
    codec = gradient_codec(wire, 0.1)
    assert tuple(codec.nbytes(numel) for numel in (1, 2, 101)) == sizes


def test_parameters_are_never_thinned_out() -> None:
    assert [type(parameter_codec(wire)).__name__ for wire in WIRES] == ["Fp32", "Bf16", "Fp16", "Fp32"]


@pytest.mark.parametrize("numel", [1, 2, 3, 1000, LONG])
@pytest.mark.parametrize("wire", WIRES)
def test_what_is_sent_whole_comes_back_within_the_bound(wire: Wire, numel: int) -> None:
    vector = uneven(numel)
    bound = {"fp32": 0.0, "bf16": 2**-8, "fp16": 2**-11, "topk": 0.0}[wire]
    error = (round_trip(gradient_codec(wire, 1.0), vector) - vector).abs()
    floor = 2**-39 * vector.abs().max() if wire == "fp16" else 0.0
    assert (error <= bound * vector.abs() + floor).all()


@pytest.mark.parametrize("wire", WIRES)
def test_elements_are_what_a_payload_is_made_of_one_by_one(wire: Wire) -> None:
    codec, vector, start = gradient_codec(wire, 0.1), uneven(1001), 300
    payload = payload_for(codec, 1001)
    codec.encode(vector, payload)
    elements = codec.elements(payload, 1001)
    assert (elements is None) == (wire in ("fp16", "topk"))
    if elements is not None:
        whole = codec.decode(payload, torch.empty(1001)).clone()
        assert torch.equal(elements.float(), whole)
        elements[start:].copy_(2 * vector[start:])
        changed = codec.decode(payload, torch.empty(1001))
        assert torch.equal(changed, torch.cat([whole[:start], 2 * whole[start:]]))


@pytest.mark.parametrize("numel", [1, 3, 1000])
@pytest.mark.parametrize("wire", WIRES)
def test_zeros_stay_zeros(wire: Wire, numel: int) -> None:
    assert not round_trip(gradient_codec(wire, 0.1), torch.zeros(numel)).any()


@pytest.mark.parametrize("place", [0, 77, LONG - 1])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("wire", WIRES)
def test_a_non_finite_value_is_not_hidden(wire: Wire, value: float, place: int) -> None:
    vector = uneven(LONG)
    vector[place] = value
    codec = gradient_codec(wire, 0.001)
    assert not math.isfinite(round_trip(codec, vector)[place])
    assert round_trip(codec, uneven(LONG)).isfinite().all()  # nor does it linger


def test_fp32_is_a_view_of_the_payload() -> None:
    codec = gradient_codec("fp32", 0.01)
    payload = payload_for(codec, 5)
    out = torch.zeros(5)
    codec.encode(torch.arange(5.0), payload)
    decoded = codec.decode(payload, out)
    assert decoded.data_ptr() == payload.data_ptr()
    assert decoded.tolist() == [0, 1, 2, 3, 4]
    assert not out.any()
    decoded[2] = 9  # a vector computed in place ...
    writes = payload._version
    codec.encode(decoded, payload)  # ... is not written over itself
    assert payload._version == writes
    assert codec.decode(payload, out).tolist() == [0, 1, 9, 3, 4]


@pytest.mark.parametrize("wire", ["bf16", "fp16", "topk"])
def test_the_other_formats_fill_the_given_buffer(wire: Wire) -> None:
    codec = gradient_codec(wire, 0.5)
    payload, out = payload_for(codec, 5), torch.full((5,), 7.0)
    codec.encode(torch.arange(5.0), payload)
    assert codec.decode(payload, out).data_ptr() == out.data_ptr()
    assert 7.0 not in out.tolist()


@given(vectors)
def test_fp32_is_exact(vector: Tensor) -> None:
    assert torch.equal(round_trip(parameter_codec("fp32"), vector), vector)


@given(vectors)
def test_bf16_keeps_eight_bits_at_any_scale(vector: Tensor) -> None:
    error = (round_trip(parameter_codec("bf16"), vector).double() - vector.double()).abs()
    assert (error <= 2**-8 * vector.double().abs() + 2**-126).all()


@given(vectors)
@example(torch.tensor([1 - 2**-24]))  # rounds up to the next power of two
@example(torch.tensor([2.0**-149]))
def test_fp16_keeps_eleven_bits_or_39_below_the_largest(vector: Tensor) -> None:
    magnitude = vector.double().abs()
    error = (round_trip(parameter_codec("fp16"), vector).double() - vector.double()).abs()
    assert (error <= torch.maximum(2**-11 * magnitude, 2**-39 * magnitude.max()) + 2**-149).all()


@given(vectors, st.floats(0.01, 1))
def test_topk_sends_exactly_the_largest(vector: Tensor, share: float) -> None:
    kept = max(1, math.ceil(share * len(vector)))
    largest = sorted(range(len(vector)), key=lambda i: (-abs(vector[i].item()), i))[:kept]
    expected = torch.zeros_like(vector)
    expected[largest] = vector[largest]
    codec = TopK(share)
    payload = payload_for(codec, len(vector))
    codec.encode(vector, payload)
    assert payload.view(torch.int32)[:kept].tolist() == sorted(largest)
    assert torch.equal(codec.decode(payload, torch.full_like(vector, 7.0)), expected)


def few_spikes() -> Tensor:
    vector = torch.zeros(LONG)
    vector[::5000] = 1.0
    return vector


def misleading() -> Tensor:
    """Large at every fifth place, which are those that the sample consists of at this length."""
    vector = uneven(LONG) * 1e-3
    vector[::5] += 1
    return vector


@pytest.mark.parametrize("vector", [uneven(LONG), torch.ones(LONG), few_spikes(), misleading()])
@pytest.mark.parametrize("share", [1e-6, 0.01, 0.3, 1.0])
def test_topk_is_exact_whatever_the_sampled_threshold(vector: Tensor, share: float) -> None:
    kept = max(1, math.ceil(share * LONG))
    expected = torch.zeros(LONG)
    largest = vector.abs().sort(descending=True, stable=True).indices[:kept]
    expected[largest] = vector[largest]
    assert torch.equal(round_trip(TopK(share), vector), expected)


@settings(deadline=None)  # a hundred round trips, on a machine that may be busy
@given(st.integers(1, 300), st.floats(0.01, 0.5), st.integers(0, 2**31))
def test_topk_loses_nothing(numel: int, share: float, seed: int) -> None:
    gradients = torch.randn(20, numel, generator=torch.Generator().manual_seed(seed))
    codec = TopK(share)
    sent = sum(round_trip(codec, gradient) for gradient in gradients)
    # Of a silent worker only the residual is left to send, and it all is after 1 / share more times.
    rest = sum(round_trip(codec, torch.zeros(numel)) for _ in range(math.ceil(1 / share)))
    torch.testing.assert_close(sent + rest, gradients.sum(0), rtol=0, atol=1e-4)
    assert not round_trip(codec, torch.zeros(numel)).any()


@settings(deadline=None)
@given(st.integers(1, 300), st.floats(0.01, 0.5), st.integers(0, 2**31))
def test_topk_forgets_a_vector_that_is_undone_and_nothing_else(numel: int, share: float, seed: int) -> None:
    """As if the vector had never been encoded, also if another one was encoded meanwhile."""
    first, undone, second = torch.randn(3, numel, generator=torch.Generator().manual_seed(seed))
    codec, payload = TopK(share), torch.zeros(TopK(share).nbytes(numel), dtype=torch.uint8)
    sent = round_trip(codec, first)
    codec.encode(undone, payload)
    sent += round_trip(codec, second)
    codec.undo(undone, payload)
    rest = sum(round_trip(codec, torch.zeros(numel)) for _ in range(math.ceil(1 / share)))
    torch.testing.assert_close(sent + rest, first + second, rtol=0, atol=1e-5)


def test_topk_encodes_the_same_bytes_again_and_leaves_the_gradient_alone() -> None:
    gradients = [uneven(LONG, seed) for seed in range(3)]
    before = [gradient.clone() for gradient in gradients]
    runs = []
    for _ in range(2):
        codec = TopK(0.01)
        payloads = [payload_for(codec, LONG) for _ in gradients]
        for gradient, payload in zip(gradients, payloads, strict=True):
            codec.encode(gradient, payload)
        runs.append(torch.cat(payloads))
    assert torch.equal(*runs)
    assert all(map(torch.equal, gradients, before))


@pytest.mark.parametrize("index", [-1, 100, 2**31 - 1, -(2**31)])
def test_damaged_indices_are_refused(index: int) -> None:
    codec = TopK(0.05)
    payload = payload_for(codec, 100)
    codec.encode(uneven(100), payload)
    payload.view(torch.int32)[3] = index
    out = torch.full((100,), 7.0)
    with pytest.raises(ValueError, match="damaged top-k payload"):
        codec.decode(payload, out)
    assert (out == 7).all()


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, math.nan])
def test_an_impossible_share_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        gradient_codec("topk", share)


def test_an_unknown_wire_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown wire format 'fp8'"):
        gradient_codec("fp8", 0.01)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown wire format 'fp8'"):
        parameter_codec("fp8")  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [0, 1])
def test_topk_learns_as_float32_does_and_not_without_its_memory(seed: int) -> None:
    images, labels = real_images(600, seed)
    full = trained_loss(images, labels, "fp32", seed)
    assert full < 1.25  # from log(10) = 2.3
    assert trained_loss(images, labels, "bf16", seed) == pytest.approx(full, abs=0.01)
    assert trained_loss(images, labels, "fp16", seed) == pytest.approx(full, abs=0.01)
    assert trained_loss(images, labels, "topk", seed) == pytest.approx(full, abs=0.1)
    assert trained_loss(images, labels, "topk", seed, forget=True) > full + 0.4


def real_images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    train = read_sample().train
    drawn = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(seed))[:count]
    images = torch.tensor(train.images)[drawn].flatten(1).float() / 255
    return (images - images.mean(0)) / images.std(0), torch.tensor(train.labels)[drawn]


def trained_loss(images: Tensor, labels: Tensor, wire: Wire, seed: int, forget: bool = False) -> float:
    """Loss of a softmax regression after 100 SGD steps of two workers, whose gradients travel as `wire`."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.zeros(images.shape[1] * 10, requires_grad=True)

    def loss(rows: Tensor) -> Tensor:
        return cross_entropy(images[rows] @ weights.view(-1, 10), labels[rows])

    codecs = [gradient_codec(wire, 0.01) for _ in range(2)]
    for _ in range(100):
        if forget:
            codecs = [gradient_codec(wire, 0.01) for _ in range(2)]
        batches = [torch.randint(len(labels), (64,), generator=generator) for _ in codecs]
        gradients = [torch.autograd.grad(loss(batch), weights)[0] for batch in batches]
        arrived = [round_trip(codec, gradient) for codec, gradient in zip(codecs, gradients, strict=True)]
        with torch.no_grad():
            weights -= 0.01 * torch.stack(arrived).mean(0)
    return loss(torch.arange(len(labels))).item()
