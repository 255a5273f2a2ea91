"""One server's part of a step: gradients are read from workers' slots, new parameters are written there."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from psys.ps.codec import Wire, gradient_codec, parameter_codec
from psys.ps.messages import Reader, Step, Update
from psys.ps.slots import Slot
from psys.ps.store import Contribution, ParameterStore, SliceState

BlockFunction = Callable[[int], None]
"""Work on the block of a number; the functions of a list are to be called in order for each block."""

RunBlocks = Callable[[int, Sequence[BlockFunction]], None]
"""Calls functions for the block numbers 0 .. count - 1, block by block, in one thread or several."""


class Buffers(Protocol):
    """The workers' buffers as one server sees them."""

    def gradients(self, worker: str) -> Sequence[Slot]:
        """The worker's slots, one of which holds a pushed gradient. Raises if the server does not have it."""

    def parameters(self, worker: str) -> Sequence[Slot]:
        """The worker's slots, one of which is to receive parameters."""

    def release(self, worker: str) -> None:
        """The worker's buffer is not needed any more."""


def run_in_turn(count: int, functions: Sequence[BlockFunction]) -> None:
    """Call the functions for one block after the other: each block stays in the core's cache meanwhile."""
    for number in range(count):
        for function in functions:
            function(number)


class Slice:
    """Applies steps to a ParameterStore. `index` is the server's number; server 0 has the running statistics.

    A slot is written between its worker's request and the reply only: nobody reads half an update, and nothing is
    copied to prevent it.
    """

    def __init__(self, index: int, store: ParameterStore, wire: Wire, topk_share: float) -> None:
        self.store = store
        self._index, self._numel = index, len(store.parameters)
        self._gradients, self._parameters = gradient_codec(wire, topk_share), parameter_codec(wire)
        self._scratch = [torch.empty_like(store.parameters) for _ in range(2)]  # takes no memory until it is written
        self._next_step = 0
        self._due: list[BlockFunction] = []
        self._reads: defaultdict[str, dict[int, Tensor]] = defaultdict(dict)  # what each worker's slot received
        self._kept: dict[int, SliceState] = {}  # by the number of the step that asked for it

    @property
    def blocks(self) -> int:
        """Blocks that a step works on."""
        return len(self.store.blocks)

    def apply(self, steps: Sequence[Step], buffers: Buffers, run_blocks: RunBlocks = run_in_turn) -> None:
        """Apply steps, in the order of their numbers without a gap.

        Each block goes through the work of all steps while the cache holds it; the result is the same as step by step.
        """
        for step in steps:
            assert step.number == self._next_step, f"step {step.number} came instead of {self._next_step}"
            for update in step.updates:
                contributions = self._contributions(update, buffers, run_blocks)
                self._due.append(self.store.begin_update(contributions, update.learning_rate, update.statistics_share))
            self._deliver(step.readers, buffers, run_blocks)
            if step.released or step.keep:
                self._flush(run_blocks)
            for worker in step.released:
                buffers.release(worker)
                self.store.remove_worker(worker)
                self._reads.pop(worker, None)
            if step.keep:
                self._kept[step.number] = self.store.state() if step.keep == "checkpoint" else self.store.snapshot()
            self._next_step += 1
        self._flush(run_blocks)

    def kept(self, number: int) -> SliceState:
        """The state kept by the step of that number."""
        return self._kept[number]

    def forget(self, number: int) -> None:
        """The state kept by the step of that number has been read."""
        self._kept.pop(number, None)

    def _flush(self, run_blocks: RunBlocks) -> None:
        due, self._due = self._due, []
        if due:
            run_blocks(self.blocks, due)

    def _contributions(self, update: Update, buffers: Buffers, run_blocks: RunBlocks) -> list[Contribution]:
        """The update's gradients where they lie, or their mean if the wire format must be decoded as a whole."""
        found: list[Contribution] = []
        columns = update.leases, update.shares, update.damping, update.staleness
        for lease, share, damping, staleness in zip(*columns, strict=True):
            slot = buffers.gradients(lease.worker)[lease.slot]
            payload = slot.gradient[self._index]
            gradient = self._gradients.elements(payload, self._numel)
            whole = gradient is None
            if gradient is None:
                self._flush(run_blocks)  # the update before may have been decoded into the same scratch vector
                gradient = self._gradients.decode(payload, self._scratch[1 if found else 0])
            statistics = slot.statistics if self._index == 0 else slot.statistics[:0]
            read = self._reads[lease.worker][lease.slot] if staleness and self.store.needs_reads else None
            found.append(Contribution(gradient, statistics, share, damping, lease.worker, read))
            if whole:
                found[-1] = self.store.compensated(found[-1])
            if gradient is self._scratch[1]:  # one scratch vector holds the sum, the other one gradient at a time
                found = [_sum(*found)]
        return found

    def _deliver(self, readers: Mapping[str, Reader], buffers: Buffers, run_blocks: RunBlocks) -> None:
        for worker in filter(self.store.lacks, readers):
            self._flush(run_blocks)
            self.store.add_worker(worker)
        slots = [(buffers.parameters(worker)[reader.slot], reader) for worker, reader in readers.items()]
        payloads = [(slot.parameters[self._index], reader.momentum_look_ahead) for slot, reader in slots]
        vectors = [(self._parameters.elements(payload, self._numel), ahead) for payload, ahead in payloads]
        parts = [(self.store.split(vector), ahead) for vector, ahead in vectors if vector is not None]

        def deliver_block(number: int) -> None:
            for blocks, ahead in parts:
                self.store.predict_block(number, ahead, blocks[number])

        if not payloads:
            return
        if len(parts) == len(payloads):
            self._due.append(deliver_block)
        else:  # the wire format needs all parameters before it writes any
            self._flush(run_blocks)
            self._deliver_whole(payloads)
        if self.store.needs_reads:
            self._keep_reads(readers, buffers)
        if self._index == 0:
            for slot, _ in slots:
                slot.statistics.copy_(self.store.statistics)

    def _keep_reads(self, readers: Mapping[str, Reader], buffers: Buffers) -> None:
        """Copy what is delivered, as its worker decodes it: the gradient will lie in the same place."""
        copied: list[tuple[Sequence[Tensor], Sequence[Tensor]]] = []
        for worker, reader in readers.items():
            payload = buffers.parameters(worker)[reader.slot].parameters[self._index]
            vector = self._parameters.elements(payload, self._numel)
            copy = self._reads[worker].get(reader.slot)
            if copy is None:
                like = self.store.parameters if vector is None else vector
                copy = self._reads[worker][reader.slot] = torch.empty_like(like)
            if vector is None:
                self._parameters.decode(payload, copy)
            else:
                copied.append((self.store.split(copy), self.store.split(vector)))

        def copy_block(number: int) -> None:
            for copies, vectors in copied:
                copies[number].copy_(vectors[number])

        if copied:
            self._due.append(copy_block)

    def _deliver_whole(self, payloads: Sequence[tuple[Tensor, float]]) -> None:
        for ahead in {ahead for _, ahead in payloads}:
            first, *others = [payload for payload, its_ahead in payloads if its_ahead == ahead]
            self._parameters.encode(self.store.predicted(ahead, self._scratch[1]), first)
            for payload in others:
                payload.copy_(first)


def _sum(first: Contribution, second: Contribution) -> Contribution:
    """The weighted sum of both, in the memory of the first."""
    if first.weight != 1:
        first.gradient.mul_(first.weight)
    first.gradient.add_(second.gradient, alpha=second.weight)
    statistics = torch.add(first.statistics * first.share, second.statistics, alpha=second.share)
    return Contribution(first.gradient, statistics, 1.0, worker=first.worker, compensated=True)
