"""A Ray cluster of several nodes on this machine, as a user starts one, which is gone after the test."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from tests.support.processes import family, started

_START = "import sys; from ray.scripts.scripts import main; sys.argv[0] = 'ray'; main()"


@dataclass
class RayNodes:
    """`address` is that of the head."""

    address: str
    _stack: contextlib.ExitStack
