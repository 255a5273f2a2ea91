"""A model's vectors in its worker's buffer: parameters in, gradients out, in the run's wire format."""

import copy

import torch
from torch import Tensor, nn

from psys.compute.flat import FlatModel
from psys.ps.codec import TopK, gradient_codec, parameter_codec
from psys.run.config import RunConfig
from psys.transport.shared_memory import WorkerBuffer


class BufferedModel:
    """FlatModels with the buffer they are trained through: `models` by the slot of the lease they compute.

    Where the buffer's bytes are what a model computes with (float32, on the CPU), each slot has its own model whose
    gradient takes the place of its parameters: a push and a pull copy nothing. Elsewhere all slots share one model.
    """

    def __init__(self, module: nn.Module, config: RunConfig) -> None:
        parameters = sum(p.numel() for p in module.parameters())
        statistics = sum(b.numel() for b in module.buffers() if b.is_floating_point())
        layout = config.buffer_layout(parameters, statistics)
        self.buffer = WorkerBuffer(layout)
        self._gradient_codecs = [gradient_codec(config.wire, config.topk_share) for _ in layout.slices]
        self._undoable = config.wire == "topk" and config.refuses_late_gradients
        self._sent: dict[int, tuple[Tensor, list[Tensor]]] = {}  # of undoable slots: the gradient and its payloads
        self._parameter_codec = parameter_codec(config.wire)
        device = next(module.parameters()).device
        if config.wire == "fp32" and device.type == "cpu":
            modules = [module, *(copy.deepcopy(module) for _ in range(1, layout.slots))]
            spans = [layout.parameters(slot) for slot in range(layout.slots)]
            vectors = [self.buffer.memory[parts[0].start : parts[-1].stop].view(torch.float32) for parts in spans]
            self.models = list(map(FlatModel, modules, vectors))
        else:
            self.models = [FlatModel(module)] * layout.slots
        # Staging between a GPU and the buffer, one for each direction.
        gpu = device.type == "cuda"
        self._outgoing = torch.empty(parameters, pin_memory=True) if gpu else None
        self._incoming = torch.empty(parameters, pin_memory=True) if gpu else None

    def send(self, slot: int) -> None:
        """Put the gradient and the statistics of the slot's model into the slot."""
        place, model = self.buffer.slots[slot], self.models[slot]
        outgoing = model.gradient if self._outgoing is None else self._outgoing.copy_(model.gradient)
        for codec, part, payload in zip(self._gradient_codecs, self.buffer.layout.slices, place.gradient, strict=True):
            codec.encode(outgoing[part], payload)
        if self._undoable:  # the servers put parameters where the payload lies, and models may share one gradient
            self._sent[slot] = outgoing.clone(), [payload.clone() for payload in place.gradient]
        place.statistics.copy_(model.statistics)

    def undo_send(self, slot: int) -> None:
        """The gradient last sent from the slot was refused as late: what the wire format remembers forgets it."""
        if not self._undoable:
            return
        gradient, payloads = self._sent.pop(slot)
        for codec, part, payload in zip(self._gradient_codecs, self.buffer.layout.slices, payloads, strict=True):
            assert isinstance(codec, TopK)
            codec.undo(gradient[part], payload)

    def receive(self, slot: int) -> None:
        """Give the slot's model the parameters and the statistics that the servers have put into the slot."""
        place, model = self.buffer.slots[slot], self.models[slot]
        incoming = model.parameters if self._incoming is None else self._incoming
        for part, payload in zip(self.buffer.layout.slices, place.parameters, strict=True):
            target = incoming[part]
            values = self._parameter_codec.decode(payload, target)
            if values.data_ptr() != target.data_ptr():
                target.copy_(values)
        if incoming is not model.parameters:
            model.parameters.copy_(incoming, non_blocking=True)
        model.statistics.copy_(place.statistics)
