"""Settle a message with the words for what became of it, and the error that its publisher gets. No I/O.

What was written to a link that ended before the broker answered is in doubt for good: "not sent" and "rejected" are
said only of a message no copy of which can have arrived.
"""

import pika.exceptions as px

from labkit.confirms import Outcome, Pending, because
from labkit.errors import (
    ConfigurationError,
    DeadlineExceeded,
    MessageRefused,
    NotConnected,
    OutcomeUnknown,
    PublishRejected,
    Unroutable,
    describe,
)

NOT_FOUND = 404  # AMQP 0-9-1, section 1.2 (Constants)


def say_unsendable(pending: Pending, problem: Exception) -> None:
    """It cannot be encoded: nothing was written."""
    error = ConfigurationError(f"this cannot be sent: {describe(problem)}")
    error.__cause__ = problem
    pending.confirmation.settle(Outcome.NOT_SENT, error)


def say_returned(pending: Pending, code: int, text: str) -> None:
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


def say_rejected(pending: Pending) -> None:
    """The broker refused it (nack), and there is no time for another try."""
    sent = pending.confirmation
    times = "once" if pending.nacks == 1 else f"{pending.nacks} times"
    if pending.is_doubtful:
        text = f"the broker refused it {times}; a copy sent before the link was lost may have arrived"
        sent.settle(Outcome.UNKNOWN, OutcomeUnknown(text, message_id=sent.message_id))
    else:
        text = f"the broker refused it {times} (nack): exchange {sent.exchange!r}, routing key {sent.routing_key!r}"
        sent.settle(Outcome.REJECTED, PublishRejected(text))


def say_closed_over(pending: Pending, reason: px.ChannelClosed) -> None:
    """The broker closed the channel over it: it would again."""
    sent = pending.confirmation
    if reason.reply_code == NOT_FOUND:
        error: Exception = Unroutable(
            f"there is no exchange {sent.exchange!r}: {describe(reason)}",
            exchange=sent.exchange,
            routing_key=sent.routing_key,
            reply_code=NOT_FOUND,
        )
        outcome = Outcome.RETURNED
    else:
        error = MessageRefused(f"the broker closed the channel over it: {describe(reason)}", reason=reason)
        outcome = Outcome.REJECTED
    error.__cause__ = reason
    sent.settle(outcome, error)


def say_late(pending: Pending, obstacle: str | None) -> None:
    """Its deadline has passed; *obstacle* is what keeps messages from being sent now, if anything does."""
    sent = pending.confirmation
    why = "" if obstacle is None else f" ({obstacle})"
    if pending.is_in_flight or pending.is_doubtful:
        text = f"it was sent, and the broker has not answered by its deadline: it may be there, or not{why}"
        sent.settle(Outcome.UNKNOWN, OutcomeUnknown(text, message_id=sent.message_id))
    elif pending.nacks:
        say_rejected(pending)
    else:
        sent.settle(Outcome.NOT_SENT, DeadlineExceeded(f"not sent by its deadline{why}"))
    pending.drop_body()


def say_given_up(pending: Pending, reason: BaseException | None) -> None:
    """The connection has ended for good; None: this side has closed it."""
    sent = pending.confirmation
    why = because(reason) if reason is not None else ": it was closed by this side"
    if pending.is_in_flight or pending.is_doubtful:
        text = f"the connection ended before the broker answered{why}; it may be there, or not"
        sent.settle(Outcome.UNKNOWN, OutcomeUnknown(text, message_id=sent.message_id))
    elif pending.nacks:
        say_rejected(pending)
    else:
        sent.settle(Outcome.NOT_SENT, NotConnected(f"not sent: the connection ended{why}", reason=reason))
    pending.drop_body()
