"""torchrun launch/ps.py --mode async: train with a parameter server. See --help for every setting."""

import os
import sys
from pathlib import Path

# Before torch is imported: its RPC logs a warning for every worker that leaves.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

from psys.training.launch import main

if __name__ == "__main__":
    main(sys.argv[1:], "launch/ps.py", default_file=Path(__file__).parent.parent / "configs" / "sample.yaml")
