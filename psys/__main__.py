"""`python -m psys`, `torchrun -m psys train`: the `psys` command."""

from psys.cli import main

main()
