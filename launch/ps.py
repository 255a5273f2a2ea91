"""torchrun launch/ps.py --mode async: train with a parameter server, as `psys train` does. See --help."""

import sys

from psys.cli import train

if __name__ == "__main__":
    train(sys.argv[1:], "python launch/ps.py")
