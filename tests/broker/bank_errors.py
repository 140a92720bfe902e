"""An exception of a module that both ends have: labkit's tests, and the oslo.messaging of ``oslo_peer.py``."""


class OverdrawnError(Exception):
    def __init__(self, account, missing):
        super().__init__(account, missing)
        self.missing = missing

    def __str__(self):
        return f"{self.args[0]} lacks {self.missing}"
