"""All settings of one run; they are written to the run's directory and sent to every worker that joins."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from psys.augment.batch import AugmentConfig
from psys.compute.device import Precision
from psys.config import NAME, Config
from psys.data.source_name import SAMPLE, store_name
from psys.ps.codec import Wire
from psys.ps.partition import partition
from psys.ps.policy import Mode, rounds_ahead
from psys.ps.schedule import ScheduleConfig
from psys.ps.store import OptimizerConfig
from psys.transport.shared_memory import Layout


class RunConfig(Config):
    """Train an image classifier with many workers around a parameter server."""

    name: str | None = Field(None, pattern=NAME)
    """directory of the run below `runs`; by default the time and the mode"""
    runs: Path = Path("runs")
    """where run directories are made"""
    source: str | None = Field(SAMPLE, min_length=1)
    """what to prepare the store from if it is not there: sample, cifar10, or the path of a data set"""
    store: Path = Field(default_factory=lambda settings: Path("stores") / store_name(settings.get("source") or SAMPLE))
    """the prepared store to train on; by default the one of `source` below stores/"""
    image_size: int | None = Field(None, ge=8, le=1024)
    """side of the images trained on, in pixels; by default the store's, and only an encoded one has any other"""
    model: str = "resnet8"
    """resnet8, 14, 20, 32, 44, 56 or 110; mlp<hidden units>, much to send for little to compute"""
    mode: Mode = "async"
    """sync: one update of all workers' mean gradient; async: an update per gradient; ssp: rounds, some of them ahead"""
    staleness: int = Field(2, ge=0, le=64)
    """rounds that a worker may be ahead in ssp; each needs memory for one more gradient per worker"""
    prefetch: int = Field(0, ge=0, le=1)
    """1: a worker pushes and pulls behind the computation of its next batch, on parameters one step older"""
    servers: int = Field(1, ge=1, le=64)
    """processes that hold a slice of the parameters each"""
    wire: Wire = "fp32"
    """of gradients, and of parameters (topk: gradients only) on their way; topk: the largest now, the others later"""
    topk_share: float = Field(0.01, gt=0, le=1)
    """share of a gradient's elements that `topk` sends"""
    workers: int | None = Field(None, ge=1)
    """processes that compute gradients; by default what the machine carries: one a GPU, or one a core up to 8"""
    threads: int | None = Field(None, ge=1)
    """threads that each worker computes with; by default this machine's cores, shared by its workers"""
    epochs: int = Field(20, ge=1, le=100_000)
    """passes over the training images"""
    batch_size: int = Field(64, ge=1)
    """images of one gradient, before batch augmentation multiplies them"""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """probability mass taken from the right class and spread over all (Szegedy et al. 2016)"""
    precision: Precision = "auto"
    """of forward and backward; auto: bf16 where the hardware multiplies in it"""
    seed: int = Field(0, ge=0, lt=2**32)
    """of the initial parameters, the order of batches and the augmentation"""
    validation_share: float = Field(0.1, ge=0, lt=1)
    """share of each class's training images held out to choose the best snapshot; 0: none, the last is the best"""
    snapshot_epochs: float = Field(1.0, ge=0.001)
    """epochs between snapshots; each is a point of the curves"""
    heartbeat_timeout: float = Field(15.0, gt=0)
    """seconds of silence after which a worker is taken for dead; a call is repeated after twice as many"""
    patience: float = Field(120.0, ge=0)
    """seconds that a worker looks for a server that went away"""
    checkpoint_every: str = Field("60s", pattern=r"^[1-9]\d*s?$")
    """updates between checkpoints, or seconds: 500, 30s; there is one at the end as well"""
    keep_checkpoints: int = Field(3, ge=1)
    """how many of the latest stay"""
    faults: Path | None = None
    """YAML file of faults that workers suffer on purpose: {faults: [{worker: 1, step: 5, kind: kill}]}"""
    listen: str = Field("127.0.0.1", min_length=1)
    """address that servers listen on; anything but loopback opens them to that network"""
    port: int = Field(0, ge=0, le=65535)
    """port that workers join at; 0: any free one"""
    augment: AugmentConfig = AugmentConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()

    def checkpoint_interval(self) -> tuple[int, Literal["s", "updates"]]:
        """How many seconds or updates lie between checkpoints."""
        count = int(self.checkpoint_every.removesuffix("s"))
        return count, "s" if self.checkpoint_every.endswith("s") else "updates"

    def layout(self, parameters: int, statistics: int) -> Layout:
        """Of the lanes of a run whose model has that many parameters and statistics."""
        # A gradient stays in its slot until its round is applied.
        slots = 1 + rounds_ahead(self.mode, self.staleness, self.prefetch)
        return Layout(partition(parameters, self.servers), statistics, slots, self.wire, self.topk_share)
