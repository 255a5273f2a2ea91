"""torchrun launch/ps.py --mode async: train with a parameter server. See --help for every setting."""

import os
import sys
from pathlib import Path

# Before torch is imported: its RPC warns of every worker that goes, which is our daily business.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

from psys.errors import exit_with_message
from psys.training.launch import launch, read_settings

_DEFAULT = Path(__file__).parent.parent / "configs" / "sample.yaml"

if __name__ == "__main__":
    with exit_with_message():
        launch(read_settings(sys.argv[1:], "launch/ps.py", default_file=_DEFAULT))
