"""Run `python ARGUMENTS` in this directory on an emulated host (see tests.support.hosts), whose init process is PID."""

import os
import sys

init, *arguments = sys.argv[1:]
namespaces = ("--net", "--uts", "--mount", "--pid")
# A process that enters a mount namespace starts at its root.
enter = ["nsenter", "--target", init, *namespaces, "env", "--chdir", os.getcwd(), sys.executable, *arguments]
os.execvp(enter[0], enter)
