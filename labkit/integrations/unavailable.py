"""What a web client is told when the broker is lost or slow: 503, try again later. No framework, no I/O."""

import pika.exceptions as px

from labkit.errors import ChannelLost, ConnectError, LabkitError, NotConnected, OutcomeUnknown, classify
from labkit.verdicts import root_cause

NOT_NOW = "The message broker cannot be reached now. Please try again later."
IN_DOUBT = f"{NOT_NOW} What was being sent may have been delivered all the same."


def why_unavailable(error: LabkitError) -> str | None:
    """Return what to tell the client; None: *error* is a mistake of the program, and later would be no better.

    The broker's address and its words are not part of the answer: they belong in the log. A lost connection is never
    the request's own mistake, whoever's mistake ended it: many requests share one.
    """
    is_lost = isinstance(error, ConnectError | NotConnected) or isinstance(root_cause(error), px.ConnectionClosed)
    if not is_lost and not classify(error).is_retryable:
        return None
    return IN_DOUBT if isinstance(error, OutcomeUnknown | ChannelLost) else NOT_NOW
