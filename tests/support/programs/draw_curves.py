"""Draws the curves of one epoch to the path given, and prints whether matplotlib.pyplot was imported for that."""

import sys
from pathlib import Path

from psys.run.curves import EpochPoint, draw

draw([EpochPoint(1, 1, 1, 0.5, None, None)], Path(sys.argv[1]), "run")
print("matplotlib.pyplot" in sys.modules)
