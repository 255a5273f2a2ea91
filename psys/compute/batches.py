"""Any batch of the run, augmented: its content depends on its number alone, not on the worker that asks."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from psys.augment.batch import AugmentConfig, augment
from psys.compute.order import batch_seed, samples_of
from psys.compute.rows import Rows
from psys.data.batch_plan import BatchPlan
from psys.data.holdout import holdout
from psys.data.store import PreparedStore


class Batches:
    """The training images of a run by batch number; `samples` of them are not held out for validation.

    `validation_share`, `batch_size`, `seed` and `earlier_batch_sizes` are the run's settings. `guess`: predict the next
    batch from the step between the last ones, where images are decoded in the background; otherwise `expect` tells it.
    """

    def __init__(
        self,
        store: PreparedStore,
        config: AugmentConfig,
        device: torch.device,
        *,
        batch_size: int,
        validation_share: float,
        seed: int,
        guess: bool,
        earlier_batch_sizes: Sequence[tuple[int, int]] = (),
    ) -> None:
        self._config, self._mean, self._std = config, store.channel_mean, store.channel_std
        self._seed = seed
        self._classes = len(store.classes)
        split = store.split("train")
        self._rows = Rows(split, device)
        self._chosen, _ = holdout(split.labels, validation_share, seed)
        self.samples = len(self._chosen)
        self._plan = BatchPlan(self.samples, batch_size, earlier_batch_sizes)
        self._generator = torch.Generator(device)
        self._ahead = _Ahead(self._load, guess) if self._rows.decoded else None

    def __getitem__(self, batch: int) -> tuple[Tensor, Tensor]:
        """Views (M * B, 3, H, W) float32 and the labels of a batch, on the device (see `augment`)."""
        images, labels, masks, usable = self._ahead[batch] if self._ahead else self._load(batch)
        self._generator.manual_seed(batch_seed(self._seed, batch, stream=1))
        columns = images, labels, masks, usable
        return augment(*columns, self._config, self._classes, self._mean, self._std, self._generator)

    def expect(self, batch: int) -> None:
        """This batch will be asked for next: where images are decoded, decoding begins now. From any thread."""
        if self._ahead:
            self._ahead.expect(batch)

    def _load(self, batch: int) -> list[Tensor]:
        order = samples_of(batch, self._plan, self._seed)
        return self._rows[self._chosen[order.numpy()]]


class _Ahead:
    """Decodes the next batch in the background while the worker computes with another one.

    The next batch is known, or guessed: batches are leased in order, so a worker whose batch numbers grew by the same
    step twice may well continue with that step. A wrong guess costs its decoding.
    """

    def __init__(self, load: Callable[[int], list[Tensor]], guess: bool) -> None:
        self._load, self._guess = load, guess
        self._background = ThreadPoolExecutor(1, "ahead")
        self._last, self._step = 0, 0
        self._coming: dict[int, Future[list[Tensor]]] = {}

    def expect(self, batch: int) -> None:
        """Begin to decode this batch; a batch expected before and not asked for is given up."""
        for other in [*self._coming]:
            # pop is atomic: a batch goes either to this thread or to the thread that computes.
            if other != batch and (rows := self._coming.pop(other, None)):
                rows.cancel()
        if batch not in self._coming:
            self._coming[batch] = self._background.submit(self._load, batch)

    def __getitem__(self, batch: int) -> list[Tensor]:
        coming = self._coming.pop(batch, None)
        rows = coming.result() if coming else self._load(batch)
        step, self._last = batch - self._last, batch
        if self._guess and step == self._step > 0:
            self.expect(batch + step)
        self._step = step
        return rows
