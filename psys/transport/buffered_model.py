"""A model's vectors in its worker's lane: parameters in, gradients out, in the run's wire format."""

import copy

import torch
from torch import nn

from psys.compute.flat import FlatModel
from psys.ps.codec import gradient_codec, parameter_codec
from psys.run.config import RunConfig
from psys.transport.shared_memory import Lane


class LanedModel:
    """FlatModels with the lane they are trained through: `models` by the slot of the lease they compute.

    Where the lane's bytes are what a model computes with (float32, on the CPU), there is one in each slot, and its
    gradient takes its parameters' place: a push and a pull copy nothing. Else it is one and the same.
    """

    def __init__(self, module: nn.Module, config: RunConfig) -> None:
        parameters = sum(p.numel() for p in module.parameters())
        statistics = sum(b.numel() for b in module.buffers() if b.is_floating_point())
        layout = config.layout(parameters, statistics)
        self.lane = Lane(layout)
        self._gradient_codecs = [gradient_codec(config.wire, config.topk_share) for _ in layout.slices]
        self._parameter_codec = parameter_codec(config.wire)
        device = next(module.parameters()).device
        if config.wire == "fp32" and device.type == "cpu":
            modules = [module, *(copy.deepcopy(module) for _ in range(1, layout.slots))]
            vectors = [layout.parameters(slot) for slot in range(layout.slots)]
            places = [self.lane[slice(spans[0].start, spans[-1].stop)].view(torch.float32) for spans in vectors]
            self.models = list(map(FlatModel, modules, places))
        else:
            self.models = [FlatModel(module)] * layout.slots
        # Between a GPU and the lane, each way.
        gpu = device.type == "cuda"
        self._outgoing = torch.empty(parameters, pin_memory=True) if gpu else None
        self._incoming = torch.empty(parameters, pin_memory=True) if gpu else None

    def send(self, slot: int) -> None:
        """Put the gradient and the statistics of the model in `slot` where servers find them."""
        there, model = self.lane.slots[slot], self.models[slot]
        outgoing = model.gradient if self._outgoing is None else self._outgoing.copy_(model.gradient)
        for codec, part, payload in zip(self._gradient_codecs, self.lane.layout.slices, there.gradient, strict=True):
            codec.encode(outgoing[part], payload)
        there.statistics.copy_(model.statistics)

    def receive(self, slot: int) -> None:
        """Give the model in `slot` the parameters and statistics that servers have put there."""
        there, model = self.lane.slots[slot], self.models[slot]
        incoming = model.parameters if self._incoming is None else self._incoming
        for part, payload in zip(self.lane.layout.slices, there.parameters, strict=True):
            place = incoming[part]
            values = self._parameter_codec.decode(payload, place)
            if values.data_ptr() != place.data_ptr():
                place.copy_(values)
        if incoming is not model.parameters:
            model.parameters.copy_(incoming, non_blocking=True)
        model.statistics.copy_(there.statistics)
