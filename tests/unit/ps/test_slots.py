"""The layout of workers' buffers."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from psys.ps.codec import Wire, gradient_codec, parameter_codec
from psys.ps.partition import partition
from psys.ps.slots import BufferLayout, slots_in

SMALL = BufferLayout(partition(100, 2), statistics=7, slots=2)
HEADER_BYTES = 16  # of the token that shared memory keeps in front of the slots


@given(
    numel=st.integers(300, 5000),
    servers=st.integers(1, 10),
    statistics=st.integers(0, 2000),
    slots=st.integers(1, 5),
    wire=st.sampled_from(["fp32", "bf16", "fp16", "topk"]),
    share=st.floats(0.001, 1),
)
def test_parts_of_a_buffer_do_not_overlap(
    numel: int, servers: int, statistics: int, slots: int, wire: Wire, share: float
) -> None:
    layout = BufferLayout(partition(numel, servers), statistics, slots, wire, share)
    numels = [part.stop - part.start for part in layout.slices]
    outgoing, incoming = gradient_codec(wire, share), parameter_codec(wire)
    places: list[tuple[int, int]] = []
    for slot in range(slots):
        places.append((layout.statistics(slot).start, 4 * statistics))
        for coming, going, n in zip(layout.parameters(slot), layout.gradient(slot), numels, strict=True):
            assert coming.start == going.start  # the gradient replaces the parameters
            assert (coming.stop - coming.start, going.stop - going.start) == (incoming.nbytes(n), outgoing.nbytes(n))
            places.append((coming.start, max(incoming.nbytes(n), outgoing.nbytes(n))))
    assert all(start % 4 == 0 for start, _ in places)
    spans = sorted((start, start + size) for start, size in places if size)
    assert spans[0][0] >= HEADER_BYTES
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    assert spans[-1][1] <= layout.nbytes


def test_the_servers_parts_follow_one_another() -> None:
    """A model can be trained in place, in the vector that the parts form."""
    for spans in (SMALL.parameters(0), SMALL.gradient(0), SMALL.parameters(1), SMALL.gradient(1)):
        assert spans[0].stop == spans[1].start
        assert spans[1].stop - spans[0].start == 400


def test_slots_are_views_of_the_buffers_memory() -> None:
    memory = torch.zeros(SMALL.nbytes, dtype=torch.uint8)
    for number, slot in enumerate(slots_in(memory, SMALL)):
        for views, spans in (
            (slot.parameters, SMALL.parameters(number)),
            (slot.gradient, SMALL.gradient(number)),
            ([slot.statistics.view(torch.uint8)], [SMALL.statistics(number)]),
        ):
            for view, span in zip(views, spans, strict=True):
                assert (view.data_ptr(), len(view)) == (memory[span].data_ptr(), span.stop - span.start)
