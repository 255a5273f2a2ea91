"""Make a worker buffer with 42 at byte 5000, print its address, and end by SIGKILL once a line arrives."""

import os
import signal
import sys

from psys.ps.partition import partition
from psys.ps.slots import BufferLayout
from psys.transport.shared_memory import WorkerBuffer

buffer = WorkerBuffer(BufferLayout(partition(100, 2), statistics=7, slots=2))
buffer.memory[5000] = 42
pid, fd, token = buffer.address
print(pid, fd, token.hex(), flush=True)
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
