"""RabbitMQ connections that tell the truth: settings, factory, lifecycle, pool.

Importing this needs Pika and pydantic-settings only. The bench (brokers, wire, boards, exercises) is
``labkit.lab`` and comes with the ``lab`` extra.
"""

import logging

__version__ = "0.1.0"

from labkit import errors
from labkit.aio import AsyncConnection
from labkit.channel import Channel, QueueState
from labkit.channel_pool import ChannelPool
from labkit.confirms import Confirmation, Outcome
from labkit.connection import Connection, ConnectionStatus
from labkit.consumer import Consumer
from labkit.delivery import Delivery
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
    classify,
)
from labkit.events import (
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
from labkit.lease import Lease
from labkit.manager import ConnectionManager
from labkit.pool import ConnectionPool
from labkit.pool_stats import PoolStats
from labkit.publisher import Publisher
from labkit.retry import Backoff, call_with_retry
from labkit.settings import BrokerSettings, TlsSettings
from labkit.states import State
from labkit.sync import SyncConnection
from labkit.tls import InsecureTls
from labkit.topology import Binding, Exchange, Message, Queue

__all__ = [
    "AccessRefused",
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
    "call_with_retry",
    "classify",
    "errors",
]

# A library never decides where its log goes (Python's logging HOWTO).
logging.getLogger("labkit").addHandler(logging.NullHandler())
