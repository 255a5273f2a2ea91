"""Any batch of the run, augmented: it depends on its number alone, not on who asks for it."""

import torch
from torch import Tensor

from psys.augment.batch import augment
from psys.cluster.config import RunConfig
from psys.compute.rows import Rows
from psys.data.holdout import holdout
from psys.data.store import PreparedStore
from psys.ps.ledger import batch_seed, samples_of


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

    def __getitem__(self, batch: int) -> tuple[Tensor, Tensor]:
        """Views (M * B, 3, H, W) float32 and the labels of a batch, on the device (see `augment`)."""
        config = self._config
        order = samples_of(batch, self.samples, config.batch_size, config.seed)
        images, labels, masks, usable = self._rows[self._chosen[order.numpy()]]
        self._generator.manual_seed(batch_seed(config.seed, batch, stream=1))
        seen = images, labels, masks, usable
        return augment(*seen, config.augment, self._classes, self._mean, self._std, self._generator)
