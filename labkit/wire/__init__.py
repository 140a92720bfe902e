"""The wire between a client and its broker: see what crosses it, and break it.

``Proxy`` does both; the faults are plain data. See ``docs/wire.md`` for what Pika makes of each. ``TlsTerminator`` is
a TLS endpoint in front of a broker's plain port.
"""

from labkit.extras import needs

with needs("wire"):
    from labkit.wire.conversation import Conversation
    from labkit.wire.faults import (
        Bandwidth,
        DropHeartbeats,
        Fault,
        Latency,
        LimitData,
        Refuse,
        ResetPeer,
        Slicer,
        SlowClose,
        Stall,
    )
    from labkit.wire.frames import Frame, FrameReader
    from labkit.wire.proxy import ActiveFault, Proxy
    from labkit.wire.tap import Mark, Tap
    from labkit.wire.terminator import TlsTerminator

__all__ = [
    "ActiveFault",
    "Bandwidth",
    "Conversation",
    "DropHeartbeats",
    "Fault",
    "Frame",
    "FrameReader",
    "Latency",
    "LimitData",
    "Mark",
    "Proxy",
    "Refuse",
    "ResetPeer",
    "Slicer",
    "SlowClose",
    "Stall",
    "Tap",
    "TlsTerminator",
]
