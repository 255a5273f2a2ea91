"""python launch/tradeoff.py --config configs/tradeoff.yaml: a study, as `psys tradeoff` runs it. See --help."""

import sys

from psys.cli import tradeoff

if __name__ == "__main__":
    tradeoff(sys.argv[1:], "python launch/tradeoff.py")
