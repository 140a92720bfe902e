"""RabbitMQ connections that tell the truth: settings, factory, lifecycle, pool.

Importing this needs Pika and pydantic-settings only. The bench (brokers, wire, boards, exercises) is
``labkit.lab`` and comes with the ``lab`` extra.
"""

import logging

from labkit import errors
from labkit.connection.channel import Channel, QueueState
from labkit.connection.connection import Connection, ConnectionStatus
from labkit.connection.states import State
from labkit.content.delivery import Delivery
from labkit.content.failed_deliveries import RetryTimes
from labkit.direct.aio import AsyncConnection
from labkit.direct.sync import SyncConnection
from labkit.errors import (
    AccessRefused,
    AuthenticationFailed,
    BrokerError,
    CertificateExpired,
    CertificateNameMismatch,
    CertificateNotTrusted,
    CertificateNotYetValid,
    ChannelLost,
    ClientCertificateMissing,
    ClientCertificateRefused,
    ConfigurationError,
    ConnectError,
    DeadlineExceeded,
    FrameError,
    LabkitError,
    LeaseError,
    MessageRefused,
    MissingExtra,
    NotConnected,
    NotTls,
    OutcomeUnknown,
    PoolClosed,
    PoolTimeout,
    PublishRejected,
    RemoteError,
    RpcTimeout,
    TlsError,
    TlsRequired,
    TooManyWaiting,
    Unroutable,
    Verdict,
    WrongThread,
    classify,
)
from labkit.events import (
    AlertCleared,
    AlertRaised,
    AttemptFailed,
    ChannelClosed,
    ChannelOpened,
    ConnectAttempted,
    ConnectionBlocked,
    ConnectionClosed,
    ConnectionGivenUp,
    ConnectionLost,
    ConnectionOpened,
    ConnectionRecovered,
    ConnectionUnblocked,
    ConsumerCancelled,
    DeclarationRefused,
    Event,
    Listener,
    MessageReturned,
    QueueRenamed,
    Timeline,
)
from labkit.factory import ConnectionFactory
from labkit.manager import ConnectionManager
from labkit.messaging.confirmations import Confirmation, Outcome
from labkit.messaging.consumer import Consumer
from labkit.messaging.publisher import Publisher
from labkit.monitor.monitor import ConnectionMonitor
from labkit.pool.channels import ChannelPool
from labkit.pool.connections import ConnectionPool
from labkit.pool.lease import Lease
from labkit.pool.stats import PoolStats
from labkit.retry import Backoff, call_with_retry
from labkit.settings.settings import BrokerSettings, TlsSettings
from labkit.settings.tls import InsecureTls
from labkit.topology import Binding, Exchange, Message, Queue
from labkit.version import __version__ as __version__

__all__ = [
    "AccessRefused",
    "AlertCleared",
    "AlertRaised",
    "AsyncConnection",
    "AttemptFailed",
    "AuthenticationFailed",
    "Backoff",
    "Binding",
    "BrokerError",
    "BrokerSettings",
    "CertificateExpired",
    "CertificateNameMismatch",
    "CertificateNotTrusted",
    "CertificateNotYetValid",
    "Channel",
    "ChannelClosed",
    "ChannelLost",
    "ChannelOpened",
    "ChannelPool",
    "ClientCertificateMissing",
    "ClientCertificateRefused",
    "ConfigurationError",
    "Confirmation",
    "ConnectAttempted",
    "ConnectError",
    "Connection",
    "ConnectionBlocked",
    "ConnectionClosed",
    "ConnectionFactory",
    "ConnectionGivenUp",
    "ConnectionLost",
    "ConnectionManager",
    "ConnectionMonitor",
    "ConnectionOpened",
    "ConnectionPool",
    "ConnectionRecovered",
    "ConnectionStatus",
    "ConnectionUnblocked",
    "Consumer",
    "ConsumerCancelled",
    "DeadlineExceeded",
    "DeclarationRefused",
    "Delivery",
    "Event",
    "Exchange",
    "FrameError",
    "InsecureTls",
    "LabkitError",
    "Lease",
    "LeaseError",
    "Listener",
    "Message",
    "MessageRefused",
    "MessageReturned",
    "MissingExtra",
    "NotConnected",
    "NotTls",
    "Outcome",
    "OutcomeUnknown",
    "PoolClosed",
    "PoolStats",
    "PoolTimeout",
    "PublishRejected",
    "Publisher",
    "Queue",
    "QueueRenamed",
    "QueueState",
    "RemoteError",
    "RetryTimes",
    "RpcTimeout",
    "State",
    "SyncConnection",
    "Timeline",
    "TlsError",
    "TlsRequired",
    "TlsSettings",
    "TooManyWaiting",
    "Unroutable",
    "Verdict",
    "WrongThread",
    "call_with_retry",
    "classify",
    "errors",
]

# A library never decides where its log goes (Python's logging HOWTO).
logging.getLogger("labkit").addHandler(logging.NullHandler())
