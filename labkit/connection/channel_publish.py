"""One publish on a channel: what sends it on the I/O thread, and what an error means for the message.

Without confirms nobody waits for that: :func:`hand_over` checks all that there is to check, and returns.
"""

from collections.abc import Callable

from labkit.concurrency.bell import WatchedCall
from labkit.connection.channel_io import NOT_SENDABLE, ChannelIo, Request, not_sendable
from labkit.content.sendable import check_route, frame_max_of, sendable
from labkit.errors import ChannelLost, DeadlineExceeded, OutcomeUnknown
from labkit.topology import Message

Told = Callable[[BaseException | None], object]


def hand_over(
    core: ChannelIo,
    message: Message | bytes | str,
    exchange: str,
    routing_key: str,
    mandatory: bool,
    timeout: float,
) -> None:
    """Have *message* sent after what was handed over before, on a channel without confirms.

    Raises:
        ConfigurationError: it cannot be sent.
        ChannelLost, DeadlineExceeded, WrongThread, NotConnected: it is not handed over.
    """
    check_route(exchange, routing_key, mandatory)
    whole, properties = sendable(message, frame_max_of(core.link.connection))
    try:
        properties.keep_encoded()  # here, where what cannot be encoded can be raised
    except NOT_SENDABLE as exc:
        raise not_sendable(exc) from exc
    core.publish(exchange, routing_key, whole.body, properties, mandatory, timeout)


class Publish:
    """A message that is to be sent, and what becomes of it. Holds no channel: a request may outlive its user.

    Args:
        core: The channel's side on the I/O thread.
        message: A message, or a body.
        exchange: Where to.
        routing_key: With which key.
        mandatory: Whether it is an error if no queue would receive it.
        told: Called on the I/O thread with what went wrong, or None; None: somebody waits.

    Attributes:
        request: What sends it.

    Raises:
        ConfigurationError: it cannot be sent.
    """

    def __init__(
        self,
        core: ChannelIo,
        message: Message | bytes | str,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        told: Told | None = None,
    ) -> None:
        check_route(exchange, routing_key, mandatory)
        whole, properties = sendable(message, frame_max_of(core.link.connection))
        body, self._message_id, self._is_sent = whole.body, whole.message_id, False

        def send(request: Request) -> None:
            if not request.waiter.claim():
                return
            core.pika.basic_publish(exchange, routing_key, body, properties, mandatory)
            if core.confirms is None:
                request.settle()
            else:
                waiter = request.waiter
                core.confirms.expect(exchange, routing_key, whole, lambda error: waiter.settle(error=error))
                self._is_sent = True
                request.waiter.release()

        self.request = Request(send, is_publish=True)
        if told is not None:
            self.request.waiter = WatchedCall(lambda error: told(error and self.meaning_of(error)))

    def meaning_of(self, error: BaseException) -> BaseException:
        """Return what *error* means for the message: if it was sent, nobody knows whether the broker has it."""
        if not self._is_sent or not isinstance(error, ChannelLost | DeadlineExceeded):
            return error
        text = f"the message was sent, and the broker's answer did not come: {error}"
        return OutcomeUnknown(text, message_id=self._message_id)
