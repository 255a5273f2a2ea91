"""Print the addresses and ports that this host listens on, as JSON."""

import json

import psutil

connections = psutil.net_connections("tcp")
print(json.dumps(sorted(c.laddr for c in connections if c.status == psutil.CONN_LISTEN)))
