"""Which errors a web client may try again after, and which are the program's own."""

import pika.exceptions as px
import pytest

from labkit import errors
from labkit.integrations.unavailable import IN_DOUBT, NOT_NOW, why_unavailable

MISSING = px.ChannelClosedByBroker(404, "NOT_FOUND - no queue 'x'")
ENDED = px.ConnectionClosedByBroker(540, "NOT_IMPLEMENTED - get from a stream")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (errors.ConnectError("refused"), NOT_NOW),
        (errors.AuthenticationFailed("refused"), NOT_NOW),
        (errors.NotConnected("lost", reason=ENDED), NOT_NOW),
        (errors.DeadlineExceeded("late"), NOT_NOW),
        (errors.PoolTimeout("none free"), NOT_NOW),
        (errors.TooManyWaiting("full"), NOT_NOW),
        (errors.PublishRejected("nack"), NOT_NOW),
        (errors.OutcomeUnknown("no answer"), IN_DOUBT),
        (errors.ChannelLost("gone", reason=px.StreamLostError("reset")), IN_DOUBT),
        (errors.ChannelLost("another request's mistake", reason=ENDED), IN_DOUBT),
        (errors.ChannelLost("gone", reason=MISSING), None),
        (errors.MessageRefused("too large", reason=MISSING), None),
        (errors.Unroutable("no queue"), None),
        (errors.ConfigurationError("odd"), None),
        (errors.LeaseError("given back"), None),
        (errors.WrongThread("the I/O thread"), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_client_is_told_to_come_again_only_where_later_may_be_better(error, told):
    assert why_unavailable(error) == told


def test_what_happened_inside_a_channels_confirm_decides():
    unknown = errors.OutcomeUnknown("no answer")
    unknown.__cause__ = errors.ChannelLost("gone", reason=MISSING)
    assert why_unavailable(unknown) is None
    unknown.__cause__ = errors.ChannelLost("gone", reason=px.StreamLostError("reset"))
    assert why_unavailable(unknown) == IN_DOUBT
