"""Injects the faults that concern a worker's process (see psys.run.faults)."""

import os
import signal
import subprocess
import time

from psys.run.faults import Fault


def inject(fault: Fault) -> None:
    """Kill, stop or delay this process; `nan` and `drop_reply` concern the gradient and the reply, not the process."""
    match fault.kind:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            # A stopped process cannot continue itself.
            subprocess.Popen(["sh", "-c", f"sleep {fault.seconds}; kill -CONT {os.getpid()}"])
            os.kill(os.getpid(), signal.SIGSTOP)
        case "slow":
            time.sleep(fault.seconds)
