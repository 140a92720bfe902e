"""What a borrower has left open on a connection or a channel, and how the broker is made to end it."""

import time
from collections.abc import Callable

from labkit.connection.channel_io import ChannelIo
from labkit.connection.link import Link

Done = Callable[[bool], None]
SENDING = 0.5  # part of the time in which what was handed over is sent; then it is dropped, which the channel logs


def open_channels(link: Link | None, before: frozenset[object]) -> list[ChannelIo]:
    """Return the channels that are open on *link*, and were not *before*. From any thread."""
    if link is None or not link.channels:
        return []
    return [each for each in list(link.channels) if each not in before and isinstance(each, ChannelIo)]


def close_channels(link: Link, before: frozenset[object], timeout: float, done: Done) -> None:
    """Close those, and call *done* when no message can come back any more: when the broker has agreed.

    What was handed over on them is sent first. *done* is called with False if the broker has not agreed within
    *timeout* seconds, or the link is lost. On the I/O thread.
    """
    ends = time.monotonic() + timeout

    def close() -> None:
        for each in open_channels(link, before):
            each.give_back()
        awaited = {each for each in link.giving_back if isinstance(each, ChannelIo)}
        _when_given_back(link, awaited, ends - time.monotonic(), done)

    when_sent(open_channels(link, before), timeout, close)


def close_channel(core: ChannelIo, timeout: float, done: Done) -> None:
    """Close one, and call *done* likewise; at once if no message comes back from it. On the I/O thread."""
    core.give_back()
    _when_given_back(core.link, {core} & core.link.giving_back, timeout, done)


def when_sent(cores: list[ChannelIo], timeout: float, function: Callable[[], None]) -> None:
    """Call *function* when all that was handed over on them is sent, or SENDING is over. On the I/O thread."""
    ends = time.monotonic() + timeout * SENDING

    def look() -> None:
        if time.monotonic() < ends and any(each.outbox for each in cores):
            cores[0].link.look_again(look)
        else:
            function()

    look()


def _when_given_back(link: Link, awaited: set[ChannelIo], timeout: float, done: Done) -> None:
    if not awaited:
        done(link.is_open)
        return
    is_told = False

    def tell(is_clean: bool) -> None:
        nonlocal is_told
        timer.cancel()
        if not is_told:
            is_told = True
            done(is_clean)

    def closed(core: ChannelIo) -> None:
        awaited.discard(core)
        if not awaited:
            tell(link.is_open)

    timer = link.io.call_later(timeout, lambda: tell(False))
    for each in awaited.copy():
        each.when_gone(closed)
