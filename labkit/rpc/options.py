"""What oslo.messaging calls the options of its rabbit driver: the same names, the same defaults. No I/O.

Those that labkit cannot honour are here too, so that a configuration can be handed over as it is; another value than
the default is refused by name. docs/rpc.md says what each of them does.
"""

import random
import socket
import sys
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from labkit.errors import ConfigurationError
from labkit.retry import Backoff
from labkit.settings.settings import BrokerSettings
from labkit.settings.tls import TlsSettings
from labkit.topology import Exchange, Queue
from labkit.validation import Count, Seconds, Settings
from labkit.values import PREFETCH_MAX

PREFETCH = 64  # where oslo.messaging has no limit: as many as an endpoint's workers
YES = "True or False"
# What labkit does not do: the option, the values that it takes, and what to do instead.
REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "rabbit_stream_fanout": ((False,), "fanout by streams is not built; use rabbit_transient_quorum_queue"),
    "use_queue_manager": ((False,), "it needs oslo.concurrency; reply and fanout queues have random names"),
    "ssl_version": (("",), "the versions are negotiated, TLS 1.2 or newer"),
    "ssl_enforce_fips_mode": ((False,), "FIPS mode is the operating system's"),
    "ssl_enforce_hostname_verification": ((True,), "give the transport settings with TlsSettings(server_name=...)"),
    "rabbit_login_method": (("AMQPLAIN", "PLAIN", "EXTERNAL"), "a demo of RabbitMQ's own"),
    "kombu_compression": ((None, "gzip"), "gzip is the one that every peer has"),
}


class RabbitOptions(Settings):
    """The options of oslo.messaging's groups ``oslo_messaging_rabbit`` and ``amqp``. Frozen; safe to share.

    Raises:
        ConfigurationError: an unknown name (with the nearest ones), an invalid value, one that labkit does not do.
    """

    rpc_conn_pool_size: Count = Field(30, ge=1, le=65535, description="connections that send, from 1 to 65535")
    conn_pool_min_size: Count = Field(2, ge=0, le=65535, description="of them, those that are kept while idle")
    conn_pool_ttl: Count = Field(1200, ge=1, description="seconds after which an idle one above them is closed")
    ssl: bool = Field(False, description=YES)
    ssl_version: str = Field("", description="'' only")
    ssl_key_file: str = Field("", description="a PEM file")
    ssl_cert_file: str = Field("", description="a PEM file")
    ssl_ca_file: str = Field("", description="a PEM file; '': the system's authorities")
    ssl_enforce_hostname_verification: bool = Field(True, description="True only")
    ssl_enforce_fips_mode: bool = Field(False, description="False only")
    kombu_reconnect_delay: Seconds = Field(1.0, ge=0, description="seconds")
    kombu_reconnect_splay: Seconds = Field(0.0, ge=0, description="seconds")
    kombu_compression: str | None = Field(None, description="None or 'gzip'")
    kombu_missing_consumer_retry_timeout: Count = Field(60, ge=0, description="seconds to try to deliver a reply")
    kombu_failover_strategy: Literal["round-robin", "shuffle"] = Field(
        "round-robin", description="'round-robin' or 'shuffle'"
    )
    rabbit_login_method: str = Field("AMQPLAIN", description="'AMQPLAIN', 'PLAIN' (both send PLAIN) or 'EXTERNAL'")
    rabbit_retry_interval: Count = Field(1, ge=0, description="seconds before the first attempt to reconnect")
    rabbit_retry_backoff: Count = Field(2, ge=0, description="seconds")
    rabbit_interval_max: Count = Field(30, ge=1, description="seconds of the longest pause")
    rabbit_ha_queues: bool = Field(False, description=YES)
    rabbit_quorum_queue: bool = Field(False, description=YES)
    rabbit_transient_quorum_queue: bool = Field(False, description=YES)
    rabbit_quorum_delivery_limit: Count = Field(0, ge=0, description="deliveries; 0: no limit")
    rabbit_quorum_max_memory_length: Count = Field(0, ge=0, description="messages; 0: no limit")
    rabbit_quorum_max_memory_bytes: Count = Field(0, ge=0, description="bytes; 0: no limit")
    rabbit_transient_queues_ttl: Count = Field(1800, ge=0, le=2**31, description="seconds without use; 0: forever")
    rabbit_qos_prefetch_count: Count = Field(0, ge=0, le=PREFETCH_MAX, description=f"messages; 0: {PREFETCH} here")
    heartbeat_timeout_threshold: Count = Field(60, ge=0, le=65535, description="seconds; 0: off")
    heartbeat_rate: Count = Field(3, ge=1, description="no effect: the I/O thread sends heartbeats by itself")
    direct_mandatory_flag: bool = Field(True, description=YES)
    enable_cancel_on_failover: bool = Field(False, description=YES)
    use_queue_manager: bool = Field(False, description="False only")
    hostname: str = Field(socket.gethostname(), description="no effect")
    processname: str = Field(Path(sys.argv[0] if sys.argv else "").name, description="no effect")
    rabbit_stream_fanout: bool = Field(False, description="False only")
    amqp_durable_queues: bool = Field(False, description=YES)
    amqp_auto_delete: bool = Field(False, description=YES)

    def __init__(self, **values: Any) -> None:
        # Written out so that a type checker knows that none is needed.
        super().__init__(**values)

    @model_validator(mode="after")
    def _can_be_done(self) -> Self:
        for name, (taken, why) in REFUSED.items():
            if getattr(self, name) not in taken:
                shown = ", ".join(map(repr, taken))
                raise ConfigurationError(
                    f"{name}: {getattr(self, name)!r:.60} is not supported: {why}; allowed: {shown}",
                    field=name,
                    value=getattr(self, name),
                    allowed=shown,
                )
        if self.conn_pool_min_size > self.rpc_conn_pool_size:
            allowed = f"up to rpc_conn_pool_size ({self.rpc_conn_pool_size})"
            raise ConfigurationError(
                f"conn_pool_min_size: {self.conn_pool_min_size} is not allowed; allowed: {allowed}",
                field="conn_pool_min_size",
                value=self.conn_pool_min_size,
                allowed=allowed,
            )
        if self.rabbit_quorum_queue and self.rabbit_ha_queues:
            raise ConfigurationError(
                "rabbit_quorum_queue and rabbit_ha_queues: one of them", field="rabbit_ha_queues", allowed="one of them"
            )
        return self

    # --- what is declared ---------------------------------------------------------------------------------------

    def control_exchange(self, name: str) -> Exchange:
        """Return the exchange of calls, casts and notifications."""
        return Exchange(name, "topic", durable=self._is_durable, auto_delete=self.amqp_auto_delete)

    def shared_queue(self, name: str) -> Queue:
        """Return the queue of a topic, of a server, or of notifications."""
        arguments = self._quorum() if self.rabbit_quorum_queue else self._mirrored()
        return Queue(name, durable=self._is_durable, auto_delete=self.amqp_auto_delete, arguments=arguments)

    def fanout_exchange(self, topic: str) -> Exchange:
        """Return the exchange that copies to every server; the broker deletes it with the last of them."""
        return Exchange(f"{topic}_fanout", "fanout", durable=self.rabbit_transient_quorum_queue, auto_delete=True)

    def transient_queue(self, name: str) -> Queue:
        """Return a queue of one process: for replies, or for fanout."""
        is_quorum, seconds = self.rabbit_transient_quorum_queue, self.rabbit_transient_queues_ttl
        arguments = self._quorum() if is_quorum else self._mirrored()
        if seconds:
            arguments["x-expires"] = seconds * 1000
        return Queue(name, durable=is_quorum, arguments=arguments)

    @property
    def _is_durable(self) -> bool:
        return self.amqp_durable_queues or self.rabbit_quorum_queue

    def _mirrored(self) -> dict[str, Any]:
        return {"x-ha-policy": "all"} if self.rabbit_ha_queues else {}  # labkit: ignore[mirrored-queue]

    def _quorum(self) -> dict[str, Any]:
        limits = {
            "x-delivery-limit": self.rabbit_quorum_delivery_limit,
            "x-max-in-memory-length": self.rabbit_quorum_max_memory_length,
            "x-max-in-memory-bytes": self.rabbit_quorum_max_memory_bytes,
        }
        return {"x-queue-type": "quorum", **{name: value for name, value in limits.items() if value}}

    # --- how it connects ----------------------------------------------------------------------------------------

    @property
    def prefetch(self) -> int:
        """Messages that the broker sends ahead."""
        return self.rabbit_qos_prefetch_count or PREFETCH

    @property
    def consume_arguments(self) -> dict[str, Any]:
        """What a consumer says of itself."""
        return {"x-cancel-on-ha-failover": True} if self.enable_cancel_on_failover else {}

    @property
    def backoff(self) -> Backoff:
        """The pauses of a connection that listens, between attempts."""
        longest = float(max(self.rabbit_interval_max, self.rabbit_retry_interval))
        return Backoff(initial=float(self.rabbit_retry_interval), maximum=longest)

    def applied(self, settings: BrokerSettings) -> BrokerSettings:
        """Return *settings* with what these options say of the connection, where that is not the default."""
        changes: dict[str, Any] = {}
        if self.heartbeat_timeout_threshold != type(self).model_fields["heartbeat_timeout_threshold"].default:
            changes["heartbeat"] = self.heartbeat_timeout_threshold
        if self.ssl:
            files = {"ca_file": self.ssl_ca_file, "cert_file": self.ssl_cert_file, "key_file": self.ssl_key_file}
            changes["tls"] = TlsSettings(**{name: path for name, path in files.items() if path})
        if self.rabbit_login_method == "EXTERNAL":
            changes["auth_mechanism"] = "EXTERNAL"
        if self.kombu_failover_strategy == "shuffle" and settings.hosts:
            changes["hosts"] = random.sample(settings.hosts, len(settings.hosts))
        return settings.replace(**changes) if changes else settings
