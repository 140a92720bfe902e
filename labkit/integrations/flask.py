"""RabbitMQ for a Flask application: publish and answer, or say 503; never hang, never say "sent" of what was not.

A :class:`labkit.ConnectionManager` publishes, a :class:`labkit.ChannelPool` lends a request its channel. Both are made
without I/O and connect when a request first needs them, so after gunicorn's fork and in the reloader's serving process.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from labkit.extras import extra, needs

with needs("flask"):
    from flask import Flask, Response, current_app, g, jsonify, request
    from werkzeug.exceptions import ServiceUnavailable

from labkit.connection.channel import Channel
from labkit.errors import ConfigurationError, DeadlineExceeded, LabkitError, MissingExtra, OutcomeUnknown, describe
from labkit.integrations.unavailable import why_unavailable
from labkit.manager import ConnectionManager
from labkit.messaging.base import CLOSE_TIMEOUT
from labkit.messaging.confirmations import Confirmation
from labkit.monitor.monitor import ConnectionMonitor
from labkit.pool.channels import ChannelPool
from labkit.pool.lease import Lease
from labkit.settings.settings import BrokerSettings
from labkit.topology import Message
from labkit.values import check_type, checked_count, checked_number, refused

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pika

NAME: Final = "labkit"  # in app.extensions
READY_TIMEOUT = 1.0  # seconds that /readyz takes at most; Kubernetes waits for one by default
DEFAULTS = {
    "LABKIT_DEADLINE": 5.0,
    "LABKIT_CHANNELS": 16,
    "LABKIT_RETRY_AFTER": 5,
    "LABKIT_HEALTH_PATH": "/healthz",
    "LABKIT_READY_PATH": "/readyz",
    "LABKIT_METRICS_PATH": "/metrics",
}
PATHS = ("LABKIT_HEALTH_PATH", "LABKIT_READY_PATH", "LABKIT_METRICS_PATH")


@dataclass(frozen=True)
class _State:
    """What one application has."""

    manager: ConnectionManager
    pool: ChannelPool
    pool_monitor: ConnectionMonitor
    deadline: float
    retry_after: int


class RabbitMQ:
    """A Flask extension that publishes. One object serves any number of applications (``init_app``).

    ``app.config``, read by :meth:`init_app`:

    * ``LABKIT_URL``: the broker, required. Nothing is connected before a request needs it.
    * ``LABKIT_DEADLINE``: 5.0 seconds for one :meth:`publish`, its confirm included, and for one :meth:`channel`. Keep
      it below the server's own limit (gunicorn's ``timeout``).
    * ``LABKIT_CHANNELS``: 16 channels of a kind that the requests of one process hold together, at most.
    * ``LABKIT_RETRY_AFTER``: 5 seconds, what a 503 tells the client to wait.
    * ``LABKIT_HEALTH_PATH``: "/healthz" answers 200 while the process serves, whatever the broker does. None: no such
      page; nor for the next.
    * ``LABKIT_READY_PATH``: "/readyz" answers 200 if a message could be published now, else 503, within a second or so.
    * ``LABKIT_METRICS_PATH``: "/metrics" answers Prometheus, where prometheus-client is installed (extra ``metrics``):
      with the numbers of this process, or of all, where ``PROMETHEUS_MULTIPROC_DIR`` is set (docs/metrics.md).

    An error that means "later" (a lost, slow or blocked broker, no free channel) and that the view lets through is
    answered with 503 and Retry-After, as a page or as JSON, or by the application's own ``errorhandler(503)``. Every
    other error is a mistake of the program, and 500 as usual.

    Thread-safe. Each process has its own connections: one publishes, one is for :meth:`channel`, each when it is first
    used. Works with threads, with gunicorn's sync and gthread workers, preloaded or not, and with the development
    server's reloader. Not with workers that patch threads (gevent, eventlet).

    Reference: Flask documentation, "Flask Extension Development".
    """

    def __init__(self, app: Flask | None = None) -> None:
        if app is not None:
            self.init_app(app)

    def __repr__(self) -> str:
        return "RabbitMQ()"

    def init_app(self, app: Flask) -> None:
        """Prepare *app*. No I/O.

        Raises:
            ConfigurationError: ``LABKIT_URL`` is missing, another key has an invalid value, two pages have one path, or
                *app* is prepared.
        """
        check_type("app", app, Flask)
        if NAME in app.extensions:
            raise ConfigurationError("app: it has a RabbitMQ already", field="app", allowed="one RabbitMQ for each app")
        url = app.config.get("LABKIT_URL")
        if url is None:
            allowed = "an AMQP URL, before init_app()"
            raise ConfigurationError(f"LABKIT_URL: not set; allowed: {allowed}", field="LABKIT_URL", allowed=allowed)
        for key, value in DEFAULTS.items():
            app.config.setdefault(key, value)
        settings = BrokerSettings.from_url(url)
        if settings.connection_name is None:
            settings = settings.replace(connection_name=app.name)
        pool = ChannelPool(settings, max_size=checked_count("LABKIT_CHANNELS", app.config["LABKIT_CHANNELS"], 2047))
        state = _State(
            manager=ConnectionManager(settings),
            pool=pool,
            pool_monitor=ConnectionMonitor(pool),
            deadline=float(checked_number("LABKIT_DEADLINE", app.config["LABKIT_DEADLINE"])),
            retry_after=checked_number("LABKIT_RETRY_AFTER", app.config["LABKIT_RETRY_AFTER"], whole=True),
        )
        paths = _paths(app.config)
        app.register_error_handler(LabkitError, _answer_error)
        app.teardown_appcontext(_release)
        pages = {"LABKIT_HEALTH_PATH": _health, "LABKIT_READY_PATH": _ready}
        if "LABKIT_METRICS_PATH" in paths and _has_metrics():
            pages["LABKIT_METRICS_PATH"] = _metrics
            app.before_request(_watch)
        for key, view in pages.items():
            if key in paths:
                app.add_url_rule(paths[key], f"{NAME}.{view.__name__.strip('_')}", view)
        app.extensions[NAME] = state  # last: an app that Flask refuses to change is not half prepared

    @property
    def manager(self) -> ConnectionManager:
        """What publishes, for the current application: to declare, to consume, to publish without waiting."""
        return _state().manager

    def publish(
        self,
        *,
        routing_key: str,
        body: bytes | str | Message,
        exchange: str = "",
        properties: "Mapping[str, Any] | pika.BasicProperties | None" = None,
    ) -> Confirmation:
        """Publish, and return when the broker has confirmed: the message is in its queue, on disk if persistent.

        What is raised below can be left to the extension: it answers 503, or 500 for the last two.

        Args:
            routing_key: Up to 255 bytes; on the default exchange, the queue's name.
            body: Text, bytes, or a Message with its own properties.
            exchange: Its name; "": the default exchange.
            properties: Names and values, or Pika's object.

        Raises:
            ConnectError, NotConnected, DeadlineExceeded, PublishRejected: it was not delivered.
            OutcomeUnknown: it was sent and not confirmed by the deadline: it may or may not have been delivered.
            Unroutable: no queue would have received it.
            ConfigurationError: it cannot be sent. Nothing was.
        """
        state = _state()
        confirmation = state.manager.publish(exchange, routing_key, body, properties, deadline=state.deadline)
        try:
            confirmation.result()
        except DeadlineExceeded as exc:
            if confirmation.done:
                raise
            raise OutcomeUnknown(str(exc), message_id=confirmation.message_id) from exc  # our own I/O thread is late
        return confirmation

    def channel(self, *, confirm: bool = False) -> Channel:
        """Return this request's channel from the pool: the same one at each call, until the request ends.

        One that was closed meanwhile (a 404, a lost link) is replaced. It is given back when the application context
        ends; do not keep it. What a request has not settled then goes back to its queue.

        Args:
            confirm: Whether its ``publish()`` waits for the broker's confirm. Without, nobody knows what was delivered.

        Raises:
            PoolTimeout, ConnectError: none is to be had by the deadline.
        """
        state = _state()
        leases: dict[bool, Lease[Channel]] = g.setdefault("_labkit_leases", {})
        lease = leases.get(confirm)
        if lease is not None and lease.channel.is_open:
            return lease.channel
        if lease is not None:
            leases.pop(confirm).checkin()
        lease = state.pool.checkout(confirm=confirm, timeout=state.deadline)
        leases[confirm] = lease
        return lease.channel

    def close(self, *, timeout: float = CLOSE_TIMEOUT) -> None:
        """End what the current application holds in this process, within *timeout* seconds. Twice is fine.

        Nobody has to: a process that ends closes its connections.
        """
        state = _state()
        state.pool_monitor.close(timeout=0.0)
        try:
            state.pool.close(timeout=timeout / 2)
        finally:  # also after an interrupt
            state.manager.close(timeout=timeout / 2)


def _paths(config: "Mapping[str, Any]") -> dict[str, str]:
    """Return the path of each page that is wanted, by its key."""
    allowed, found = "a path that begins with '/'; None: no such page", dict[str, str]()
    for key in PATHS:
        path = config[key]
        if path is None:
            continue
        if not isinstance(path, str) or not path.startswith("/"):
            raise refused(key, path, allowed)
        if path in found.values():  # the first page would answer for both
            other = next(each for each in found if found[each] == path)
            raise refused(key, path, f"{allowed}, and that is not {other}")
        found[key] = path
    return found


def _state() -> _State:
    state = current_app.extensions.get(NAME)  # outside an application context Flask says so itself
    if not isinstance(state, _State):
        raise ConfigurationError("app: it has no RabbitMQ", field="app", allowed="an app given to init_app()")
    return state


def _release(_: BaseException | None) -> None:
    for lease in g.pop("_labkit_leases", {}).values():
        lease.checkin()


def _answer_error(error: LabkitError) -> Any:
    text = why_unavailable(error)
    if text is None:
        raise error  # a 500, as any other error of a view
    current_app.logger.warning("%s %s answered 503: %s", request.method, request.path, describe(error))
    unavailable = ServiceUnavailable(text, retry_after=_state().retry_after)
    answer = current_app.handle_http_exception(unavailable)  # the application's own page for 503, if it has one
    if answer is not unavailable or _wants_a_page():
        return answer
    return _not_now(error=text)


def _wants_a_page() -> bool:
    return request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html"


def _not_now(**facts: object) -> Response:
    answer = jsonify(**facts)
    answer.status_code = 503
    answer.headers["Retry-After"] = str(_state().retry_after)
    return answer


def _health() -> Response:
    return jsonify(status="alive")


def _ready() -> Response:
    state = _state()
    try:
        state.manager.ensure_connection(deadline=min(READY_TIMEOUT, state.deadline))
    except LabkitError as exc:
        current_app.logger.warning("not ready: %s", describe(exc))
        return _not_now(status="not ready", reason="no connection to the broker")
    if any(each.is_blocked for each in state.manager.connections):
        return _not_now(status="not ready", reason="the broker has an alarm and takes no messages")
    return jsonify(status="ready")


def _has_metrics() -> bool:
    try:
        extra("metrics", "prometheus_client")
    except MissingExtra:
        return False
    return True


def _watch() -> None:
    """Have this process's numbers exported, whoever of the server's processes is asked for them."""
    state = _state()
    for monitor in (state.manager.monitor, state.pool_monitor.open()):
        monitor.export_to(None)


def _metrics() -> Response:
    client = extra("metrics", "prometheus_client")
    return Response(_state().manager.monitor.metrics.text(), content_type=client.CONTENT_TYPE_LATEST)
