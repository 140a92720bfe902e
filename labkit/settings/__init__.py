"""Settings of a connection: ``BrokerSettings``, ``TlsSettings``. No I/O but the reading of certificate files."""

from labkit.settings.settings import BrokerSettings
from labkit.settings.tls import InsecureTls, TlsSettings

__all__ = ["BrokerSettings", "InsecureTls", "TlsSettings"]
