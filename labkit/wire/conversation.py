"""What a client and its broker said, as a table and as a picture that come out the same tomorrow. No I/O.

Times, ports and names made up by a server or a library differ from run to run; they are left out or numbered in the
order in which they appear, so that the same script gives the same table on every broker version.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self

from labkit.errors import FrameError
from labkit.values import check_type
from labkit.wire.diagram import draw
from labkit.wire.faults import Direction, check_whole
from labkit.wire.frames import CONTENT_BODY, CONTENT_HEADER, HEARTBEAT, MASK, PROTOCOL_HEADER, Frame
from labkit.wire.tap import Entry, Mark

MOST_ROWS: Final = 120  # what a reader scrolls through; the rest is counted
LAST_ROWS: Final = 20  # of these, how many from the end
LONGEST_VALUE: Final = 80  # characters

# What differs between versions (products, capabilities, the order of mechanisms), is always empty, or has been
# without a meaning since AMQP 0-9-1.
SKIPPED: Final = frozenset(
    {"ticket", "out_of_band", "channel_id", "known_hosts", "capabilities", "insist", "locale", "locales"}
    | {"mechanisms", "server_properties", "client_properties", "class_id", "method_id", "immediate", "version_minor"}
    | {"message_id", "correlation_id", "timestamp", "user_id", "app_id", "consumer_count"}
)
# Empty says something: the default exchange, a queue that the broker is to name.
SAYS_SOMETHING_EMPTY: Final = frozenset({"exchange", "queue", "routing_key"})
RENAMED: Final = {"exchange_type": "type"}

# Names nobody chose; the pattern, and what stands before the number.
MADE_UP: Final = (
    (re.compile(r"amq\.gen-[\w-]+"), "amq.gen-"),
    (re.compile(r"amq\.ctag-[\w-]+"), "amq.ctag-"),
    (re.compile(r"ctag\d+\.[0-9a-f]{32}"), "ctag-"),
    (re.compile(r"amq\.rabbitmq\.reply-to\.[\w+/=.#@-]+"), "amq.rabbitmq.reply-to."),
    (re.compile(r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b"), "uuid-"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "uuid-"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    link: int
    direction: Direction | None
    """None: something that the proxy did."""
    channel: int | None
    what: str
    fields: str
    passed: bool = True
    count: int = 1
    """How many equal frames in a row this line stands for (bodies of one message, heartbeats)."""

    @property
    def arrow(self) -> str:
        """Who spoke to whom; an ``x`` where a fault kept it from arriving."""
        if self.direction is None:
            return "      proxy     "
        if self.direction == "upstream":
            return "client -> broker" if self.passed else "client -x broker"
        return "client <- broker" if self.passed else "client x- broker"


class Conversation:
    """The frames that crossed a proxy, oldest first: ``print`` it, or let Jupyter draw it.

    Within a direction the order is exact; across directions it is the order in which the proxy saw them. The filters
    return a smaller conversation.
    """

    def __init__(self, entries: Iterable[Entry], *, dropped: int = 0) -> None:
        self._entries = tuple(entries)
        self._dropped = dropped

    # -- filters -----------------------------------------------------------------------------------------------

    def without_heartbeats(self) -> Self:
        """Leave heartbeats out; when they come is a matter of time."""
        return self._only(e for e in self._entries if e.frame is None or e.frame.name != HEARTBEAT)

    def channel(self, number: int) -> Self:
        """Only frames of this channel; 0 is the connection itself."""
        check_whole("number", number, at_least=0)
        return self._only(e for e in self._entries if e.frame is not None and e.frame.channel == number)

    def link(self, number: int) -> Self:
        """Only this link; 1 is the first connection that the proxy accepted."""
        check_whole("number", number, at_least=1)
        return self._only(e for e in self._entries if e.link == number)

    def since(self, mark: Mark) -> Self:
        """Only what came after ``proxy.mark()``."""
        check_type("mark", mark, Mark)
        return self._only(e for e in self._entries if e.number >= mark.number)

    def _only(self, entries: Iterable[Entry]) -> Self:
        return type(self)(entries, dropped=self._dropped)

    # -- what is in it -----------------------------------------------------------------------------------------

    @property
    def frames(self) -> tuple[Frame, ...]:
        """The frames, with all their fields and real names."""
        return tuple(entry.frame for entry in self._entries if entry.frame is not None)

    @property
    def names(self) -> tuple[str, ...]:
        """The frames' names, in order."""
        return tuple(frame.name for frame in self.frames)

    @property
    def dropped(self) -> int:
        """How many older frames were forgotten because the record was full."""
        return self._dropped

    def rows(self) -> tuple[Row, ...]:
        """The table's lines; equal frames in a row (bodies, heartbeats) are one line with a count."""
        rows: list[Row] = []
        sizes: list[int] = []
        made_up = _MadeUp()
        for entry in self._entries:
            frame = entry.frame
            if frame is None:
                rows.append(Row(entry.link, None, None, entry.note, ""))
                sizes.append(0)
                continue
            row = Row(entry.link, entry.direction, frame.channel, frame.name, "", entry.passed)
            if frame.name in (CONTENT_BODY, HEARTBEAT):
                content = frame.size - 8 if frame.name == CONTENT_BODY else 0
                if rows and replace(rows[-1], count=1, fields="") == row:
                    sizes[-1] += content
                    rows[-1] = replace(rows[-1], count=rows[-1].count + 1, fields=_octets(sizes[-1]))
                    continue
                rows.append(replace(row, fields=_octets(content)))
                sizes.append(content)
                continue
            rows.append(replace(row, fields=_text(frame, made_up)))
            sizes.append(0)
        return tuple(rows)

    def __len__(self) -> int:
        return len(self._entries)

    # -- how it looks ------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        rows, left_out = _shortened(self.rows())
        with_link = len({row.link for row in rows}) > 1
        lines = []
        if self._dropped:
            lines.append(f"({self._dropped} older frames are no longer kept)")
        width = max((len(_label(row)) for row in rows if row.direction), default=0)
        for index, row in enumerate(rows):
            if left_out and index == MOST_ROWS - LAST_ROWS:
                lines.append(f"... {left_out} more rows ...")
            link = f"link {row.link}  " if with_link else ""
            channel = "    " if row.channel is None else f"ch {row.channel:<2}"
            label = row.what if row.direction is None else f"{_label(row):<{width}}"
            lines.append(f"{link}{row.arrow}  {channel} {label}  {row.fields}".rstrip())
        return "\n".join(lines) or "(nothing was said)"

    __repr__ = __str__

    def svg(self) -> str:
        """Return a sequence diagram; the same conversation gives the same bytes."""
        rows, left_out = _shortened(self.rows())
        frames = "1 frame" if len(self.frames) == 1 else f"{len(self.frames)} frames"
        return draw(
            [
                (row.arrow.strip(), row.direction, _label(row), row.fields, row.passed, row.link, row.channel)
                for row in rows
            ],
            gap=(MOST_ROWS - LAST_ROWS, left_out) if left_out else None,
            title=f"Conversation of a client and a broker, {frames}",
            description=str(self),
        )

    def _repr_html_(self) -> str:
        return self.svg()


class _MadeUp:
    """Numbers for names that nobody chose, in the order of their appearance."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}
        self._counts: dict[str, int] = {}

    def plain(self, text: str) -> str:
        for pattern, prefix in MADE_UP:
            text = pattern.sub(lambda found, prefix=prefix: self._number(found.group(), prefix), text)  # type: ignore[misc]
        return text

    def _number(self, name: str, prefix: str) -> str:
        if name not in self._known:
            if re.fullmatch(re.escape(prefix) + r"\d{1,6}", name):
                return name  # numbered already: a later pattern looks at the same text again
            self._counts[prefix] = self._counts.get(prefix, 0) + 1
            self._known[name] = f"{prefix}{self._counts[prefix]}"
        return self._known[name]


def _text(frame: Frame, made_up: _MadeUp) -> str:
    try:
        fields = frame.fields
    except FrameError:
        return "(its inside cannot be read)"
    if frame.name == PROTOCOL_HEADER:
        return f"version={fields['version']}"
    if frame.name == "Connection.Start":
        return f"version={fields['version_major']}-{fields['version_minor']}"
    if frame.name == "Connection.StartOk" and MASK in str(fields["response"]):
        fields["response"] = MASK  # the user's name differs from bench to bench; `frames` has it
    if frame.name == CONTENT_HEADER:
        size = fields.pop("body_size")
        return ", ".join([f"body_size={size}", *_pairs(fields, made_up)])
    return ", ".join(_pairs(fields, made_up))


def _pairs(fields: Mapping[str, Any], made_up: _MadeUp) -> Iterable[str]:
    for name, value in fields.items():
        if name in SKIPPED or value is None or value is False:
            continue
        if value in ("", b"", {}, []) and name not in SAYS_SOMETHING_EMPTY:
            continue
        yield f"{RENAMED.get(name, name)}={_value(value, made_up)}"


def _value(value: object, made_up: _MadeUp) -> str:
    text = value if isinstance(value, str) else value.decode("utf-8", "replace") if isinstance(value, bytes) else None
    shown = made_up.plain(repr(value) if text is None else text)
    if text is not None:
        shown = repr(shown)
    return shown if len(shown) <= LONGEST_VALUE else shown[: LONGEST_VALUE - 1] + "…"


def _label(row: Row) -> str:
    return row.what if row.count == 1 else f"{row.what} x {row.count}"


def _octets(count: int) -> str:
    return "" if not count else f"{count} octet" if count == 1 else f"{count} octets"


def _shortened(rows: Sequence[Row]) -> tuple[Sequence[Row], int]:
    if len(rows) <= MOST_ROWS:
        return rows, 0
    return (*rows[: MOST_ROWS - LAST_ROWS], *rows[-LAST_ROWS:]), len(rows) - MOST_ROWS
