"""An S3 server on loopback, in a process of its own: prints its address, and ends with its standard input.

It is a stand-in. It knows conditional PUT, pages and error codes, but checks no signature, and is never busy.
"""

from __future__ import annotations

import logging
import os
import sys

os.environ["MOTO_S3_DEFAULT_MAX_KEYS"] = "60"  # of a page, so that long listings have several

from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
host, port = server.get_host_and_port()
print(f"http://{host}:{port}", flush=True)
sys.stdin.read()
server.stop()
