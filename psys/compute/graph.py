"""A computation on the GPU as one CUDA graph: the CPU launches once what is hundreds of small kernels.

Written by PyTorch's documentation ("CUDA Graphs" in CUDA semantics), not yet run on a GPU.
"""

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3
"""Runs before capturing: libraries choose their algorithms and allocate their workspaces in the first ones."""


class Replay:
    """`compute` on tensors like the given ones; all it writes, its result too, stays where capturing found it.

    `compute` must not read values back to the host, and what it reads besides its inputs must stay where it is.
    Capturing runs it WARM_UP times, with the effects that has. A result lasts until the next call.
    """

    def __init__(self, compute: Callable[..., Tensor], *inputs: Tensor) -> None:
        self._inputs = [tensor.clone() for tensor in inputs]  # clones keep channels_last
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(inputs[0].device):
            # The default stream cannot be captured, and what warmed up on another would be set up anew in the capture.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    compute(*self._inputs)
            torch.cuda.current_stream().wait_stream(stream)
            # Other threads of a worker copy to and from the GPU meanwhile: by default that would break the capture.
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                self._result = compute(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        torch._foreach_copy_(self._inputs, list(inputs))
        self._graph.replay()
        return self._result
