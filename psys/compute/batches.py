"""Any batch of the run, augmented: it depends on its number alone, not on who asks for it."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from psys.augment.batch import augment
from psys.compute.rows import Rows
from psys.data.holdout import holdout
from psys.data.store import PreparedStore
from psys.ps.ledger import batch_seed, samples_of
from psys.run.config import RunConfig


class Batches:
    """The training images of a run, of which `samples` are not held out, by the ledger's batch numbers."""

    def __init__(self, config: RunConfig, store: PreparedStore, device: torch.device) -> None:
        self._config, self._mean, self._std = config, store.channel_mean, store.channel_std
        self._classes = len(store.classes)
        split = store.split("train")
        self._rows = Rows(split, device)
        self._chosen, _ = holdout(split.labels, config.validation_share, config.seed)
        self.samples = len(self._chosen)
        self._generator = torch.Generator(device)
        self._ahead = _Ahead(self._load, guess=not config.prefetch) if self._rows.decoded else None

    def __getitem__(self, batch: int) -> tuple[Tensor, Tensor]:
        """Views (M * B, 3, H, W) float32 and the labels of a batch, on the device (see `augment`)."""
        config = self._config
        images, labels, masks, usable = self._ahead[batch] if self._ahead else self._load(batch)
        self._generator.manual_seed(batch_seed(config.seed, batch, stream=1))
        seen = images, labels, masks, usable
        return augment(*seen, config.augment, self._classes, self._mean, self._std, self._generator)

    def expect(self, batch: int) -> None:
        """This one will be asked for next: where images are decoded, that begins now. From any thread."""
        if self._ahead:
            self._ahead.expect(batch)

    def _load(self, batch: int) -> list[Tensor]:
        order = samples_of(batch, self.samples, self._config.batch_size, self._config.seed)
        return self._rows[self._chosen[order.numpy()]]


class _Ahead:
    """Decodes a batch in the background while another is computed with: the next, where that is known or guessed.

    Batches are handed out in order to whoever asks, so a worker that went on by the same step twice may do so again.
    A wrong guess costs its decoding.
    """

    def __init__(self, load: Callable[[int], list[Tensor]], guess: bool) -> None:
        self._load, self._guess = load, guess
        self._background = ThreadPoolExecutor(1, "ahead")
        self._last, self._step = 0, 0
        self._coming: dict[int, Future[list[Tensor]]] = {}

    def expect(self, batch: int) -> None:
        """Begin to decode; what was expected before and did not come is given up."""
        for other in [*self._coming]:
            # Whoever takes a batch out, this or the thread that computes, has it for itself.
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
