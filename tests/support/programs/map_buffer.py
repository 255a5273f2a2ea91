"""Map the worker buffer at PID FD TOKEN: print bytes 5000 to 5003, write bytes 6000 to 6002."""

import sys

import torch

from psys.ps.partition import partition
from psys.ps.slots import BufferLayout
from psys.transport.protocol import BufferAddress
from psys.transport.shared_memory import MappedBuffer

pid, fd, token = sys.argv[1:]
layout = BufferLayout(partition(100, 2), statistics=7, slots=2)
mapped = MappedBuffer(layout, BufferAddress(int(pid), int(fd), bytes.fromhex(token)))
assert mapped.shared
print(mapped.memory[5000:5004].tolist())
mapped.memory[6000:6003] = torch.tensor([7, 8, 9], dtype=torch.uint8)
