"""Settle a message with the words for what became of it, and the error that its publisher gets. No I/O.

What was written to a link that ended before the broker answered is in doubt for good: "not sent" and "rejected" are
said only of a message no copy of which can have arrived.
"""

from labkit.connection.refusals import refusal
from labkit.errors import (
    ConfigurationError,
    DeadlineExceeded,
    NotConnected,
    OutcomeUnknown,
    PublishRejected,
    Unroutable,
    describe,
)
from labkit.messaging.confirmations import Outcome, Pending, reason_suffix


def settle_unsendable(pending: Pending, problem: Exception) -> None:
    """Settle a message that cannot be encoded: nothing was written this time."""
    sent = pending.confirmation
    if pending.is_doubtful:
        text = f"a copy sent before the link was lost may have arrived; it cannot be sent again: {describe(problem)}"
        error: Exception = OutcomeUnknown(text, message_id=sent.message_id)
    elif isinstance(problem, ConfigurationError):
        sent.settle(Outcome.NOT_SENT, problem)
        return
    else:
        error = ConfigurationError(f"this cannot be sent: {describe(problem)}")
    error.__cause__ = problem
    sent.settle(Outcome.UNKNOWN if pending.is_doubtful else Outcome.NOT_SENT, error)


def settle_returned(pending: Pending, code: int, text: str) -> None:
    """The broker had no queue for it."""
    sent = pending.confirmation
    doubt = "; a copy sent before the link was lost may have arrived" if pending.is_doubtful else ""
    where = f"exchange {sent.exchange!r}" if sent.exchange else "the default exchange"
    error = Unroutable(
        f"no queue for it: {where}, routing key {sent.routing_key!r} ({code} {text}){doubt}",
        exchange=sent.exchange,
        routing_key=sent.routing_key,
        reply_code=code,
    )
    sent.settle(Outcome.RETURNED, error)


def settle_rejected(pending: Pending) -> None:
    """The broker refused it (nack), and there is no time for another try."""
    sent = pending.confirmation
    times = "once" if pending.nacks == 1 else f"{pending.nacks} times"
    if pending.is_doubtful:
        text = f"the broker refused it {times}; a copy sent before the link was lost may have arrived"
        sent.settle(Outcome.UNKNOWN, OutcomeUnknown(text, message_id=sent.message_id))
    else:
        text = f"the broker refused it {times} (nack): exchange {sent.exchange!r}, routing key {sent.routing_key!r}"
        sent.settle(Outcome.REJECTED, PublishRejected(text))


def settle_refused(pending: Pending, reason: BaseException) -> None:
    """The broker closed the channel, or the connection, over it: it would again."""
    sent = pending.confirmation
    error = refusal(reason, exchange=sent.exchange, routing_key=sent.routing_key)
    sent.settle(Outcome.RETURNED if isinstance(error, Unroutable) else Outcome.REJECTED, error)


def settle_expired(pending: Pending, obstacle: str | None) -> None:
    """Settle a message whose deadline has passed; *obstacle* keeps messages from being sent now, if anything does."""
    sent = pending.confirmation
    why = "" if obstacle is None else f" ({obstacle})"
    if pending.is_in_flight or pending.is_doubtful:
        text = f"it was sent, and the broker has not answered by its deadline: it may or may not have arrived{why}"
        sent.settle(Outcome.UNKNOWN, OutcomeUnknown(text, message_id=sent.message_id))
    elif pending.nacks:
        settle_rejected(pending)
    else:
        sent.settle(Outcome.NOT_SENT, DeadlineExceeded(f"not sent by its deadline{why}"))
    pending.drop_body()


def settle_connection_lost(pending: Pending, reason: BaseException | None) -> None:
    """The connection has ended for good; None: this side has closed it."""
    sent = pending.confirmation
    why = reason_suffix(reason) if reason is not None else ": it was closed by this side"
    if pending.is_in_flight or pending.is_doubtful:
        text = f"the connection ended before the broker answered{why}; it may or may not have arrived"
        sent.settle(Outcome.UNKNOWN, OutcomeUnknown(text, message_id=sent.message_id))
    elif pending.nacks:
        settle_rejected(pending)
    else:
        sent.settle(Outcome.NOT_SENT, NotConnected(f"not sent: the connection ended{why}", reason=reason))
    pending.drop_body()
