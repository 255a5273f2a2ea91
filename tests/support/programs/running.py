"""Runs the command of its arguments as a training runs the preparation of its store."""

import sys

from psys.training.store import run_program

if __name__ == "__main__":
    run_program(sys.argv[1:])
