"""Writes its process id to the file of the first argument and sleeps; writes "interrupted" there when it is."""

import os
import sys
import time
from pathlib import Path

file = Path(sys.argv[1])
try:
    file.write_text(str(os.getpid()))
    time.sleep(60)
except KeyboardInterrupt:
    file.write_text("interrupted")
    sys.exit(130)
