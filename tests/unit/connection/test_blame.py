"""Which step is to blame for the end of a link, and when it is set aside. No broker."""

import pika.exceptions as px
import pytest

from labkit.connection.blame import SOMEBODY, Blame, Suspects, is_mistake, kind_of_loss
from labkit.errors import Kind

FRAME_ERROR = px.ConnectionClosedByBroker(
    501, "FRAME_ERROR - type 2, all octets = <<>>: {frame_too_large,140025,131064}"
)
MISTAKES = [
    FRAME_ERROR,
    px.ConnectionClosedByBroker(502, "SYNTAX_ERROR"),
    px.ConnectionClosedByBroker(503, "COMMAND_INVALID - unknown exchange type 'nonsense'"),
    px.ConnectionClosedByBroker(504, "CHANNEL_ERROR - second 'channel.open' seen"),
    px.ConnectionClosedByBroker(505, "UNEXPECTED_FRAME"),
    px.ConnectionClosedByBroker(530, "NOT_ALLOWED - attempt to reuse consumer tag 't'"),
    px.ConnectionClosedByBroker(
        540, "NOT_IMPLEMENTED - basic.get not supported by stream queues queue 's' in vhost '/'"
    ),
    px.ConnectionClosedByBroker(541, "INTERNAL_ERROR - Feature `transient_nonexcl_queues` is deprecated.\nIts use ..."),
]
NOBODYS = [
    px.StreamLostError("cut"),
    px.AMQPHeartbeatTimeout("silence"),
    px.ConnectionBlockedTimeout("alarm"),
    px.ConnectionClosedByClient(200, "asked for"),
    px.ChannelClosedByBroker(540, "of a channel only"),
    px.ConnectionClosedByBroker(320, "CONNECTION_FORCED - Closed via management plugin"),
    px.ConnectionClosedByBroker(403, "ACCESS_REFUSED"),
    px.ConnectionClosedByBroker(506, "RESOURCE_ERROR"),
    px.ConnectionClosedByBroker(530, "NOT_ALLOWED - ... has reached the maximum allowed user limit of (2)"),
    px.ConnectionClosedByBroker(530, "NOT_ALLOWED - user connection limit (2) is reached"),
    px.ConnectionClosedByBroker(541, "INTERNAL_ERROR"),
    px.ConnectionClosedByBroker(541, "INTERNAL_ERROR - timed out consuming from quorum queue 'q' in vhost '/'"),
]


def named(error):
    return f"{type(error).__name__}-{getattr(error, 'reply_code', '')}"


@pytest.mark.parametrize("reason", MISTAKES, ids=named)
def test_two_closes_over_a_mistake_with_the_same_step_alone_in_hand_set_it_aside(reason):
    blame = Blame()
    blame.link_ended({"declare"}, reason)
    assert not blame.aside
    blame.link_ended({"declare"}, reason)
    assert blame.aside == {"declare": reason}


@pytest.mark.parametrize("reason", NOBODYS, ids=named)
def test_what_is_nobodys_mistake_blames_nobody(reason):
    blame = Blame()
    for _ in range(5):
        blame.link_ended({"declare"}, reason)
    assert not is_mistake(reason)
    assert not blame


@pytest.mark.parametrize("in_hand", [set(), {"declare", "publish"}, {"declare", SOMEBODY}, {SOMEBODY}])
def test_nobody_is_blamed_unless_exactly_one_step_that_is_repeated_was_in_hand(in_hand):
    blame = Blame()
    for _ in range(5):
        blame.link_ended(in_hand, FRAME_ERROR)
    assert not blame.aside
    assert not blame


def test_a_success_between_two_closes_acquits():
    blame = Blame()
    blame.link_ended({"declare"}, FRAME_ERROR)
    blame.clear("declare")
    blame.link_ended({"declare"}, FRAME_ERROR)
    assert not blame.aside


def test_another_steps_success_between_two_closes_does_not():
    blame = Blame()
    blame.link_ended({"declare"}, FRAME_ERROR)
    blame.clear("another")
    blame.link_ended({"another"}, FRAME_ERROR)
    blame.link_ended({"declare"}, FRAME_ERROR)
    assert list(blame.aside) == ["declare"]


def test_losses_that_are_nobodys_between_two_closes_do_not_acquit():
    blame = Blame()
    blame.link_ended({"declare"}, FRAME_ERROR)
    blame.link_ended({"declare"}, px.StreamLostError("cut"))
    blame.link_ended({"declare", "publish"}, FRAME_ERROR)
    blame.link_ended({"declare"}, FRAME_ERROR)
    assert list(blame.aside) == ["declare"]


def test_what_is_asked_for_again_has_two_more_tries():
    blame = Blame()
    for _ in range(2):
        blame.link_ended({"declare"}, FRAME_ERROR)
    blame.clear("declare")
    assert not blame
    blame.link_ended({"declare"}, FRAME_ERROR)
    assert not blame.aside


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (px.ConnectionClosedByBroker(541, "INTERNAL_ERROR"), Kind.BUSY),
        (px.ConnectionClosedByBroker(506, "RESOURCE_ERROR"), Kind.BUSY),
        (px.ConnectionBlockedTimeout("alarm"), Kind.BUSY),
        *((each, Kind.TRANSIENT) for each in MISTAKES),
        (px.ConnectionClosedByBroker(403, "ACCESS_REFUSED"), Kind.TRANSIENT),
        (px.StreamLostError("cut"), Kind.TRANSIENT),
    ],
    ids=str,
)
def test_the_end_of_an_open_link_is_never_a_refusal(reason, kind):
    assert kind_of_loss(reason) is kind


def test_suspects_go_one_at_a_time_and_others_wait_while_one_is_in_hand():
    suspects = Suspects()
    suspects.add(["a", "b"])
    assert suspects.must_wait("a", is_any_in_hand=True)
    assert not suspects.must_wait("other", is_any_in_hand=True)
    assert not suspects.must_wait("a", is_any_in_hand=False)
    suspects.began("a")
    assert suspects.must_wait("b", is_any_in_hand=True)
    assert suspects.must_wait("other", is_any_in_hand=True)
    suspects.clear("a")
    assert not suspects.must_wait("b", is_any_in_hand=False)
    suspects.began("b")
    suspects.stopped(["b"])  # its channel is gone, and it is a suspect still
    assert suspects.must_wait("b", is_any_in_hand=True)
    suspects.clear("b")
    assert not suspects


def test_what_is_no_suspect_is_never_alone():
    suspects = Suspects()
    suspects.add(["a"])
    suspects.began("other")
    assert not suspects.must_wait("another", is_any_in_hand=True)
