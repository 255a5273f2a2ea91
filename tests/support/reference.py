"""What a run in mode sync computes, computed again in this process: to be compared bit for bit with a real run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from psys.data.store import PreparedStore
from psys.ps.store import SliceState
from psys.run.directory import RunDirectory
from psys.simulate.in_process import InProcessRun
from psys.simulate.worker import workload_of


@contextmanager
def one_thread() -> Iterator[None]:
    """Within the block torch computes with one thread, as the workers of `small_run` do: others round differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def computed_again(run: Path, version: int) -> dict[str, Tensor]:
    """Parameters and statistics of a version that the run's two workers made."""
    config = RunDirectory(run).config()
    with one_thread():
        again = InProcessRun(config, workload_of(config, PreparedStore.open(config.store)), awaited=2)
        again.join()
        again.join()
        again.run(updates=version)
    return vectors(again.state())


def vectors(state: SliceState) -> dict[str, Tensor]:
    """The content of a snapshot of this state."""
    return {"parameters": state.parameters, "statistics": state.statistics}


def snapshot(run: Path, version: int) -> dict[str, Tensor]:
    """The content of the run's snapshot of that version."""
    return load_file(RunDirectory(run).snapshot_path(version))


def same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two mappings have the same names and tensors."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
