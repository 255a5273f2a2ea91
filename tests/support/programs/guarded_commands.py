"""Runs shell commands in a guarded folder: guarded_commands.py FOLDER killed|finished COMMAND ...

Prints "ready" after the commands; with "killed" it then waits to be killed.
"""

import subprocess
import sys
import time
from pathlib import Path

from psys.segment.guard import guarded

folder, end, *commands = sys.argv[1:]
with guarded(Path(folder)):
    for command in commands:
        subprocess.run(["sh", "-c", command], cwd=folder, start_new_session=True, check=True)
    print("ready", flush=True)
    if end == "killed":
        time.sleep(60)
