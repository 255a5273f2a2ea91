"""A model's vectors in its worker's lane: gradients out, parameters in, in the run's wire format."""

import torch
from torch import Tensor, nn

from psys.cluster.config import RunConfig
from psys.cluster.lane import Lane
from psys.compute.flat import FlatModel
from psys.ps.codec import gradient_codec, parameter_codec


class LanedModel:
    """A FlatModel with the lane it is trained through.

    Where the lane's bytes are what the model computes with (float32, on the CPU, one slot), the model lives in the
    lane: a push and a pull copy nothing.
    """

    def __init__(self, module: nn.Module, config: RunConfig) -> None:
        parameters = sum(p.numel() for p in module.parameters())
        statistics = sum(b.numel() for b in module.buffers() if b.is_floating_point())
        layout = config.layout(parameters, statistics)
        self.lane = Lane(layout)
        self._gradient_codecs = [gradient_codec(config.wire, config.topk_share) for _ in layout.slices]
        self._parameter_codec = parameter_codec(config.wire)
        device = next(module.parameters()).device
        if config.wire == "fp32" and layout.slots == 1 and device.type == "cpu":
            self.model = FlatModel(module, self._whole(layout.parameters), self._whole(layout.gradient(0)))
        else:
            self.model = FlatModel(module)
        pinned = device.type == "cuda"
        # Between device and lane; on the CPU the gradient itself, and a buffer that is not touched in float32.
        self._outgoing = torch.empty(parameters, pin_memory=True) if pinned else self.model.gradient
        self._incoming = torch.empty(parameters, pin_memory=pinned)

    def send(self, slot: int) -> None:
        """Put the model's gradient and statistics into `slot`."""
        lane, layout, model = self.lane, self.lane.layout, self.model
        if self._outgoing is not model.gradient:
            self._outgoing.copy_(model.gradient)
        for codec, part, span in zip(self._gradient_codecs, layout.slices, layout.gradient(slot), strict=True):
            codec.encode(self._outgoing[part], lane[span])
        lane[layout.statistics_out(slot)].view(torch.float32).copy_(model.statistics)

    def receive(self) -> None:
        """Take the parameters and statistics that stand in the lane."""
        lane, layout, model = self.lane, self.lane.layout, self.model
        for part, span in zip(layout.slices, layout.parameters, strict=True):
            values, place = self._parameter_codec.decode(lane[span], self._incoming[part]), model.parameters[part]
            if values.data_ptr() != place.data_ptr():
                place.copy_(values, non_blocking=True)
        model.statistics.copy_(lane[layout.statistics_in].view(torch.float32))

    def _whole(self, spans: list[slice]) -> Tensor:
        return self.lane[slice(spans[0].start, spans[-1].stop)].view(torch.float32)
