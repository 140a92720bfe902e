"""Serves until it is asked to die: ``rpc_program.py`` with a URL on its standard input."""

import os
import sys
import threading

from labkit.rpc import RPCServer, Target, Transport


class Dying:
    def add(self, ctxt, a, b):
        return a + b

    def die(self, ctxt):
        os._exit(9)  # as kill -9: nothing is said, nothing is closed


with (
    Transport(sys.stdin.readline().strip()) as transport,
    RPCServer(transport, Target(topic="sums", server="x"), [Dying()]),
):
    print("serving", flush=True)
    threading.Event().wait()
