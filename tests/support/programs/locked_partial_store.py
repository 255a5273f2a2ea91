"""Holds the lock of the partial store in the folder of its argument, and prints "locked", until it is killed."""

import sys
import time
from pathlib import Path

from psys.segment.partial import PartialStore

with PartialStore.opened(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
