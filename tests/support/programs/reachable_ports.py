"""Print which of the PORTS (a JSON list) of HOST accept a connection, as JSON."""

import json
import socket
import sys

host, ports = sys.argv[1], json.loads(sys.argv[2])
found = []
for port in ports:
    try:
        socket.create_connection((host, port), timeout=2).close()
        found.append(port)
    except OSError:
        pass
print(json.dumps(found))
