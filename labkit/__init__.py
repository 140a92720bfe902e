"""RabbitMQ connections that tell the truth: settings, factory, lifecycle, pool.

Importing this needs Pika and pydantic-settings only. The bench (brokers, wire, boards, exercises) is
``labkit.lab`` and comes with the ``lab`` extra.
"""

import logging

__version__ = "0.1.0"

from labkit import errors
from labkit.errors import ConfigurationError, LabkitError
from labkit.settings import BrokerSettings, TlsSettings

__all__ = ["BrokerSettings", "ConfigurationError", "LabkitError", "TlsSettings", "errors"]

# A library never decides where its log goes (Python's logging HOWTO).
logging.getLogger("labkit").addHandler(logging.NullHandler())
