"""A copy of a prepared store for nodes of a cluster that do not share the disk of the machine that has it."""

import io
import os
import socket
import tarfile
import tempfile
from pathlib import Path

from psys.data.folders import new_folder
from psys.data.store import PreparedStore
from psys.errors import PsysError
from psys.files import lock_file

_SENT_BYTES = 2 * 2**30
"""of a store that nodes get from this machine; nodes need a copy of a larger one in the same place"""
_UNPACK_SECONDS = 600.0


def packed_store(store: Path) -> bytes:
    """A prepared store as a tar archive; b"" if it is too large to be sent."""
    if sum(file.stat().st_size for file in store.iterdir()) > _SENT_BYTES:
        return b""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(store, ".")
    return archive.getvalue()


def find_store(store: Path, content: str) -> Path | None:
    """A store on this node with the `content` hash: the one in the driver's place, or one that was unpacked before."""
    for place in (store, _unpacked(content)):
        if place.exists() and PreparedStore.open(place).content_hash == content:
            return place
    return None


def unpacked_store(store: Path, content: str, packed: bytes) -> Path:
    """The store with the `content` hash, unpacked on this node unless it has been before.

    `store`: where the driver has it. Raises PsysError if `packed` is b"": the store is too large to be sent.
    """
    if not packed:
        raise PsysError(f"{socket.gethostname()} needs a copy of the store at {store}, which is too large to send")
    own = _unpacked(content)
    own.parent.mkdir(mode=0o700, exist_ok=True)
    with (own.parent / "lock").open("wb") as lock:  # other processes may start on this node at the same time
        lock_file(lock.fileno(), _UNPACK_SECONDS)
        if not own.exists():
            with new_folder(own) as unpacked, tarfile.open(fileobj=io.BytesIO(packed)) as tar:
                tar.extractall(unpacked, filter="data")
    return own


def _unpacked(content: str) -> Path:
    return Path(tempfile.gettempdir()) / f"psys-stores-{os.getuid()}" / content[:40]
