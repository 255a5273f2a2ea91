"""All settings of a run; they are written to the run's directory and sent to every process that joins."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from psys.augment.batch import AugmentConfig
from psys.compute.device import Precision
from psys.config import NAME, Config
from psys.data.source_name import SAMPLE, store_name
from psys.ps.codec import Wire
from psys.ps.compensation import CompensationConfig
from psys.ps.optimizer import OptimizerConfig
from psys.ps.partition import partition
from psys.ps.policy import Mode, rounds_ahead
from psys.ps.rules import RunRules
from psys.ps.schedule import ScheduleConfig
from psys.ps.slots import BufferLayout

CONFIGS = Path(__file__).parents[1] / "configs"
"""The packaged configs."""

TOPICS = {
    "run": ("name", "runs", "resume", "seed"),
    "data": ("source", "store", "image_size", "validation_share"),
    "model and training": (
        "model",
        "weights",
        "batchnorm",
        "epochs",
        "batch_size",
        "label_smoothing",
        "class_weights",
        "gradient_clip",
        "precision",
        "earlier_batch_sizes",
    ),
    "evaluation": ("snapshot_epochs", "evaluate_every", "early_stopping", "export"),
    "parallelism": (
        *("mode", "staleness", "backup_workers", "max_staleness", "sync_epochs", "local_steps"),
        *("workers", "remote_workers", "threads", "servers", "remote_servers"),
        *("wire", "topk_share", "prefetch", "followed", "model_hash"),
    ),
    "checkpoints and faults": ("checkpoint_every", "keep_checkpoints", "faults"),
    "network": ("listen", "port", "role", "join", "token_file"),
    "Ray cluster": ("ray_address", "gpus_per_worker"),
    "timeouts": ("heartbeat_timeout", "patience", "start_timeout", "join_timeout", "leave_timeout"),
}
"""The groups of `--help`, with the settings that TrainingConfig adds."""

SYNONYMS = {
    other: setting
    for setting, others in {
        "schedule.learning_rate": "lr rate base-lr",
        "schedule.kind": "scheduler lr-scheduler lr-schedule",
        "schedule.warmup_epochs": "warmup",
        "optimizer.kind": "optim opt",
        "optimizer.weight_decay": "wd decay l2",
        "optimizer.momentum_per_worker": "dana",
        "compensation.delay": "dc-asgd delay-compensation",
        "compensation.staleness_power": "staleness-aware damping",
        "augment.cutout_size": "cutout",
        "batch_size": "b bs batch batch-size-per-worker per-device-train-batch-size",
        "epochs": "e ep iterations num-epochs num-train-epochs",
        "model": "a arch architecture net network backbone",
        "source": "d data dataset data-dir data-path data-root root",
        "image_size": "imgsz img-size input-size resolution",
        "validation_share": "val-split validation-split",
        "mode": "sync async ssp consistency",
        "staleness": "staleness-bound slack",
        "backup_workers": "backups num-backup-workers spare-workers",
        "max_staleness": "max-delay delay-threshold staleness-limit",
        "sync_epochs": "switch-epoch switch-epochs sync-switch",
        "local_steps": "sync-every inner-steps local-sgd",
        "workers": "w j n nproc nproc-per-node np num-processes world-size gpus num-gpus devices",
        "servers": "s ps num-ps",
        "wire": "compression compress quantize",
        "precision": "amp bf16 fp16 dtype",
        "name": "run-name run-id experiment exp-name",
        "runs": "o out output output-dir out-dir save-dir log-dir logdir work-dir",
        "resume": "r resume-from continue load checkpoint ckpt resume-from-checkpoint",
        "checkpoint_every": "save-every save-interval checkpoint-interval save-steps",
        "keep_checkpoints": "save-total-limit max-to-keep",
        "listen": "host bind address ip",
        "port": "p master-port",
        "join": "master-addr server-address connect",
        "token_file": "token",
    }.items()
    for other in others.split()
}
"""Names that these settings have in other programs."""


class RestartConfig(Config):
    """How often a process of the run that died is started again. Restarts are counted since it last ran stably."""

    failures: int = Field(3, ge=0)
    """restarts after errors of its own; after one more error it is not started again"""
    kills: int = Field(100, ge=0)
    """restarts after deaths by a signal; after one more it is not started again"""
    first_pause: float = Field(0.5, ge=0)
    """seconds before the second restart in a row; each further pause is twice as long; the first restart is at once"""
    longest_pause: float = Field(4.0, ge=0)
    """seconds that no pause exceeds"""
    stable_after: float = Field(10.0, gt=0)
    """seconds of life after which earlier deaths do not count any more"""


class RunConfig(Config):
    """Train an image classifier with many workers around a parameter server."""

    named_files: ClassVar[Sequence[Path]] = tuple(CONFIGS / f"{name}.yaml" for name in ("cifar10", "paper", "sample"))
    topics: ClassVar[Mapping[str, Sequence[str]]] = TOPICS
    synonyms: ClassVar[Mapping[str, str]] = SYNONYMS
    examples: ClassVar[Sequence[str]] = (
        "%(prog)s --config sample --epochs 5 --workers 2",
        "%(prog)s --config cifar10 --mode sync --model resnet44 --schedule.learning-rate 0.05",
        "%(prog)s --source PATH/OF/IMAGES --epochs 10",
        "%(prog)s --resume runs/NAME --workers 8",
        "torchrun --standalone --nproc-per-node 3 -m psys train    # rank 0 is the server",
    )

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
    """resnet8, 14, 20, 32, 44, 56, 110 or 18; wrn-16-4; mlp<hidden units>; package.module:factory; a .onnx file"""
    model_hash: str | None = None
    """SHA-256 of the .onnx file of `model`; nobody sets it"""
    weights: Literal["keep", "reinit"] = "keep"
    """of an .onnx file: keep: training goes on from them; reinit: they are drawn anew"""
    batchnorm: Literal["keep", "restore"] = "keep"
    """of an .onnx file: restore: batch norm that its exporter folded into convolutions is put back"""
    mode: Mode = "async"
    """sync: one update of all workers' mean gradient; async: an update per gradient; ssp: rounds, some of them ahead"""
    staleness: int = Field(2, ge=0, le=64)
    """rounds that a worker may be ahead in ssp; each needs memory for one more gradient per worker"""
    backup_workers: int = Field(0, ge=0, lt=32_000)
    """of sync: how many workers, the latest, an update does not wait for; their batches are computed again"""
    max_staleness: int | None = Field(None, ge=0)
    """of async: a gradient is not applied if more updates were made meanwhile; its batch is computed again"""
    sync_epochs: float = Field(0.0, ge=0)
    """epochs in mode sync, before `mode` begins"""
    prefetch: int = Field(0, ge=0, le=1)
    """1: a worker pushes and pulls while it computes its next batch, on parameters one step older"""
    servers: int = Field(1, ge=1, le=64)
    """processes that hold a slice of the parameters each"""
    remote_servers: int = Field(0, ge=0, le=63)
    """of the servers: how many are started elsewhere, by --role server --join HOST:PORT"""
    wire: Wire = "fp32"
    """wire format of gradients, and of parameters (topk: gradients only); topk: the largest now, the others later"""
    topk_share: float = Field(0.01, gt=0, le=1)
    """share of a gradient's elements that `topk` sends"""
    workers: int | None = Field(None, ge=1)
    """processes that compute gradients; by default one a GPU, or one a core up to 8"""
    remote_workers: int = Field(0, ge=0, lt=32_000)
    """of the workers: how many are started elsewhere, by --role worker --join HOST:PORT"""
    local_steps: int = Field(1, ge=1, le=10_000)
    """batches that a worker takes an SGD step with, one after the other, before it pushes the sum of their gradients"""
    threads: int | None = Field(None, ge=1)
    """threads that each worker computes with; by default this machine's cores, shared by its workers; 1 on Ray"""
    followed: tuple[str, ...] = ()
    """the settings that nobody set and that follow `mode` and `workers`, also in a run resumed with others"""
    epochs: int = Field(20, ge=1, le=100_000)
    """passes over the training images"""
    batch_size: int = Field(64, ge=1)
    """images of one gradient, before batch augmentation multiplies them"""
    earlier_batch_sizes: tuple[tuple[PositiveInt, PositiveInt], ...] = ()
    """rows (batch size, epoch): the batch size of the epochs before that one, in a run resumed with another one"""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """probability mass taken from the right class and spread over all (Szegedy et al. 2016)"""
    class_weights: str = "none"
    """of the classes in the loss: none, balanced (rare classes count more), or one number a class: 1,2.5,1"""
    gradient_clip: float | None = Field(None, gt=0)
    """a batch's gradient of a larger Euclidean norm is scaled to this norm before it is pushed (Pascanu et al. 2013)"""
    precision: Precision = "auto"
    """of forward and backward; auto: bf16 where the hardware multiplies in it"""
    seed: int = Field(0, ge=0, lt=2**32)
    """of the initial parameters, the order of batches and the augmentation"""
    validation_share: float = Field(0.1, ge=0, lt=1)
    """share of each class's training images held out to choose the best snapshot; 0: none, the last is the best"""
    snapshot_epochs: float = Field(1.0, ge=0.001)
    """epochs between snapshots; each is a point of the curves"""
    evaluate_every: float | None = Field(None, ge=0)
    """epochs between evaluations on held-out images; by default as 1 % of the idle cores allows; 0: only at the end"""
    early_stopping: float | None = Field(None, gt=0)
    """epochs without a better held-out accuracy after which the run stops; snapshots are then evaluated at once"""
    export: bool = True
    """write the best snapshot to model.onnx, and check it against ONNX Runtime"""
    heartbeat_timeout: float = Field(15.0, gt=0)
    """seconds of silence after which a worker is taken for dead; a call is repeated after twice as many"""
    patience: float = Field(120.0, ge=0)
    """seconds that a worker, or a server started by --join, looks for a run that it cannot reach yet, or any more"""
    start_timeout: float = Field(60.0, gt=0)
    """seconds that the workers that have come wait for the others of `workers`, so that all start together"""
    join_timeout: float = Field(120.0, gt=0)
    """seconds that the run waits at its start for all servers to join"""
    leave_timeout: float = Field(10.0, gt=0)
    """seconds that the servers wait, once the last batch is applied, for the workers to leave"""
    restarts: RestartConfig = RestartConfig()
    checkpoint_every: str = Field("60s", pattern=r"^[1-9]\d*s?$")
    """updates between checkpoints, or seconds: 500, 30s; there is one at the end as well"""
    keep_checkpoints: int = Field(3, ge=1)
    """how many of the latest stay"""
    faults: Path | None = None
    """YAML file of faults and stragglers: {faults: [{worker: 1, step: 5, kind: kill}], slow_workers: [{factor: 2}]}"""
    listen: str = Field("127.0.0.1", min_length=1)
    """address that servers listen on; anything but loopback opens them to that network"""
    port: int = Field(0, ge=0, le=65535)
    """port that workers join at; 0: any free one"""
    augment: AugmentConfig = AugmentConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    compensation: CompensationConfig = CompensationConfig()
    schedule: ScheduleConfig = ScheduleConfig()

    @field_validator("model")
    @classmethod
    def _a_file_is_found_from_anywhere(cls, value: str) -> str:
        return os.path.abspath(value) if value.endswith(".onnx") else value

    @field_validator("class_weights")
    @classmethod
    def _class_weights_are_numbers(cls, value: str) -> str:
        if value not in ("none", "balanced"):
            try:
                weights = [float(number) for number in value.split(",")]
            except ValueError:
                weights = []
            if not any(weights) or not all(0 <= weight < math.inf for weight in weights):
                raise ValueError("expected none, balanced, or numbers from 0 up with commas between, one a class")
        return value

    @model_validator(mode="after")
    def _policy_is_possible(self) -> Self:
        if self.backup_workers and self.mode != "sync":
            raise ValueError(f"'backup_workers' needs 'mode' sync: in {self.mode} no update waits for all workers")
        if self.workers is not None and self.backup_workers >= self.workers:
            raise ValueError(f"of {self.workers} 'workers' at most {self.workers - 1} can be 'backup_workers'")
        if self.max_staleness is not None and self.mode != "async":
            bound = "the bound of ssp is 'staleness'" if self.mode == "ssp" else "sync has no staleness"
            raise ValueError(f"'max_staleness' needs 'mode' async: {bound}")
        if self.sync_epochs and self.mode == "sync":
            raise ValueError("'sync_epochs' needs 'mode' async or ssp: the mode that follows them")
        return self

    @model_validator(mode="after")
    def _settings_of_a_file_need_one(self) -> Self:
        if not self.model.endswith(".onnx") and (self.weights, self.batchnorm) != ("keep", "keep"):
            raise ValueError(f"'weights' and 'batchnorm' are of an .onnx file, and 'model' is {self.model}")
        if self.batchnorm == "restore" and self.servers > 1:
            raise ValueError("'batchnorm' restore needs 'servers' 1: only server 0 has images to measure")
        return self

    @model_validator(mode="after")
    def _server_0_is_local(self) -> Self:
        if self.remote_servers >= self.servers:
            raise ValueError(f"of {self.servers} servers at most {self.servers - 1} can be 'remote_servers'")
        return self

    @model_validator(mode="after")
    def _remote_workers_are_workers(self) -> Self:
        if self.remote_workers and self.workers is None:
            raise ValueError("'remote_workers' needs 'workers': how many there are in all")
        if self.workers is not None and self.remote_workers > self.workers:
            raise ValueError(f"of {self.workers} 'workers' at most {self.workers} can be 'remote_workers'")
        return self

    @model_validator(mode="after")
    def _local_steps_are_sgd(self) -> Self:
        if self.local_steps > 1 and self.optimizer.kind != "sgd":
            raise ValueError(
                f"'local_steps' above 1 needs 'optimizer.kind' sgd, got {self.optimizer.kind}: workers step by SGD, at "
                "the rate of the run"
            )
        return self

    @model_validator(mode="after")
    def _early_stopping_needs_evaluations(self) -> Self:
        if self.early_stopping is not None and not self.evaluates_while_training:
            raise ValueError("'early_stopping' needs 'validation_share' above 0, and 'evaluate_every' not 0")
        return self

    @model_validator(mode="after")
    def _late_gradients_fit_the_optimizer(self) -> Self:
        if self.optimizer.momentum_per_worker and self.mode != "async":
            raise ValueError(f"'optimizer.momentum_per_worker' needs 'mode' async, not {self.mode}")
        if self.optimizer.momentum_per_worker and self.sync_epochs:
            raise ValueError("'optimizer.momentum_per_worker' needs 'sync_epochs' 0: a round has no worker of its own")
        if self.compensation.delay != "none" and self.local_steps > 1:
            raise ValueError("'compensation.delay' needs 'local_steps' 1: it corrects the gradient of one step")
        if self.compensation.gap_aware and self.optimizer.kind != "sgd":
            raise ValueError(f"'compensation.gap_aware' needs 'optimizer.kind' sgd, not {self.optimizer.kind}")
        return self

    @property
    def refuses_late_gradients(self) -> bool:
        """Whether a gradient may be refused although its worker was never taken for dead."""
        return self.backup_workers > 0 or self.max_staleness is not None

    @property
    def evaluates_while_training(self) -> bool:
        """Whether snapshots are evaluated before the run ends."""
        return self.evaluate_every != 0 and self.validation_share > 0

    @property
    def gradients_of_update(self) -> int:
        """Gradients whose mean is an update when all workers take part."""
        return 1 if self.mode == "async" else max(1, (self.workers or 1) - self.backup_workers)

    def rules(self) -> RunRules:
        """When snapshots, checkpoints, the start and the end are due."""
        interval = int(self.checkpoint_every.removesuffix("s"))
        by_time = self.checkpoint_every.endswith("s")
        return RunRules(
            snapshot_epochs=self.snapshot_epochs,
            checkpoint_seconds=interval if by_time else None,
            checkpoint_updates=None if by_time else interval,
            start_timeout=self.start_timeout,
            early_stopping=self.early_stopping,
            leave_timeout=self.leave_timeout,
        )

    def state_names(self) -> tuple[str, ...]:
        """Names of the vectors that the servers keep beside parameters and statistics."""
        return (*self.optimizer.state_names(), *self.compensation.state_names())

    def buffer_layout(self, parameters: int, statistics: int) -> BufferLayout:
        """The layout of the workers' buffers for a model with that many parameters and statistics.

        Raises ValueError if the model has too few parameters for the servers.
        """
        slices = partition(parameters, self.servers)
        return BufferLayout(slices, statistics, self.slots(), self.wire, self.topk_share)

    def slots(self) -> int:
        """Slots of a worker's buffer: a gradient stays in its slot until its round is applied."""
        return 1 + rounds_ahead(self.mode, self.staleness, self.prefetch)
