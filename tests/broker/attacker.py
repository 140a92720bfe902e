"""What a server that means harm may say at each stage of a connection. The server itself is the atlas's."""

import random
import struct

from pika import spec

from labkit.lab.atlas.attacker import GOOD, HELLO, PROPERTIES, Attacker, Behaviour, method, raw, start, tune

__all__ = ["STAGES", "Attacker", "generated", "named"]


def close(code, text=b"no", class_and_method=(0, 0)):
    return raw(struct.pack(">HHHB", 10, 50, code, len(text)) + text + struct.pack(">HH", *class_and_method))


def blocked(reason):
    return raw(struct.pack(">HHB", 10, 60, len(reason)) + reason)


def nested(depth):
    inside = b""
    for _ in range(depth):
        inside = b"\1kF" + struct.pack(">I", len(inside)) + inside
    return inside


STAGES = (HELLO, "Connection.StartOk", "Connection.Open", "Channel.Open")
NONSENSE = {
    "nothing": b"",
    "text": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "an SSH banner": b"SSH-2.0-OpenSSH_9.2\r\n",
    "AMQP 1.0": b"AMQP\0\1\0\0",
    "AMQP 0-8": b"AMQP\1\1\x08\0",
    "a TLS alert": b"\x15\x03\x01\0\x02\x02\x28",
    "a TLS record": b"\x16\x03\x03\0\x7a\x02\0\0\x76\x03\x03",
    "zeros": bytes(64),
    "ones": b"\xff" * 64,
    "an empty frame": raw(b""),
    "half a method id": raw(b"\0\x0a"),
    "no end mark": raw(b"\0\x0a\0\x0a", end=b"\0"),
    "half a frame": GOOD[HELLO][:15],
    "a frame of 4 GiB": raw(b"\0\x0a", size=0xFFFFFFFF, end=b""),
    "a frame larger than it says": raw(b"\0\x0a\0\x0a" + bytes(40), size=4),
    "a frame type that does not exist": raw(b"\0\x0a\0\x0a", kind=9),
    "an unknown class": raw(struct.pack(">HH", 999, 10)),
    "an unknown method": raw(struct.pack(">HH", 10, 999)),
    "a method without its arguments": raw(struct.pack(">HH", 10, 10)),
    "Start on channel 7": method(spec.Connection.Start(), 7),
    "a client's method": method(spec.Connection.Open("/")),
    "a body out of the blue": raw(b"body", channel=1, kind=3),
    "a content header out of the blue": raw(struct.pack(">HHQH", 60, 0, 4, 0), channel=1, kind=2),
    "a content header on channel 0": raw(struct.pack(">HHQH", 60, 0, 4, 0), kind=2),
    "a delivery on a channel that nobody opened": method(spec.Basic.Deliver("t", 1, False, "", "q"), 9),
    "a heartbeat on channel 5": raw(b"", kind=8, channel=5),
    "a heartbeat with a body": raw(b"tick", kind=8),
    "a challenge": method(spec.Connection.Secure(b"say more")),
    "close, with a code that does not exist": close(999),
    "close, with the code 0": close(0),
    "close, with text that is no UTF-8": close(320, b"\xff\xfe\x80"),
    "close twice": close(320) * 2,
    "close, and then Start": close(320) + GOOD[HELLO],
    "Close-Ok that nobody asked for": method(spec.Connection.CloseOk()),
    "blocked, with text that is no UTF-8": blocked(b"\xff\xfe\x80"),
    "unblocked only": method(spec.Connection.Unblocked()),
    "a channel's end on channel 0": method(spec.Channel.Close(404, "no", 0, 0)),
    "Open-Ok at once": GOOD["Connection.Open"],
    "all at once": GOOD[HELLO] + tune() + GOOD["Connection.Open"],
}
STARTS = {
    "no capabilities": start(),
    "no mechanisms": start(PROPERTIES, mechanisms=b""),
    "a mechanism that nobody has": start(PROPERTIES, mechanisms=b"GSSAPI"),
    "no locales": start(PROPERTIES, locales=b""),
    "AMQP 1.0 in Start": start(PROPERTIES, version=(1, 0)),
    "mechanisms that are no UTF-8": start(PROPERTIES, mechanisms=b"PLAIN \xff\xfe"),
    "properties of an unknown type": start(b"\1aZ"),
    "properties that end too early": start(b"\1aS\0\0\0\xff"),
    "properties with a date that no calendar has": start(b"\1aT" + b"\xff" * 8),
    "properties 300 deep": start(nested(300)),
    "capabilities that are a text": start(b"\x0ccapabilitiesS\0\0\0\1x"),
    "a name that is no UTF-8": start(b"\2\xff\xfeS\0\0\0\1x"),
}
TUNES = [
    *(tune(channel_max=each) for each in (0, 1, 65_535)),
    *(tune(frame_max=each) for each in (0, 1, 7, 8, 4095, 4096, 2**31, 2**32 - 1)),
    *(tune(heartbeat=each) for each in (0, 1, 65_535)),
    tune(1, 1, 1),
]


def named():
    """The behaviours that have a name: each kind of nonsense at each stage, and what fits one stage only."""
    yield from (Behaviour(name, at, say) for at in STAGES for name, say in NONSENSE.items())
    for at in STAGES:
        yield Behaviour("nothing", at, b"", "reset")
        yield Behaviour("nothing", at, b"", "silence")
        yield Behaviour("half a frame", at, GOOD[at][:10], "silence")
        yield Behaviour("a frame of 4 GiB", at, NONSENSE["a frame of 4 GiB"], "silence")
        yield Behaviour("its answer, byte by byte", at, GOOD[at], "go on", drips=True)
        yield Behaviour("its answer twice", at, GOOD[at] * 2, "go on")
    yield from (Behaviour(name, HELLO, say, "go on") for name, say in STARTS.items())
    yield from (Behaviour(f"Tune {say[11:19].hex()}", STAGES[1], say, "go on") for say in TUNES)
    yield Behaviour("blocked, with text that is no UTF-8", STAGES[2], GOOD[STAGES[2]] + blocked(b"\xff"), "go on")
    yield Behaviour("unblocked only", STAGES[2], GOOD[STAGES[2]] + method(spec.Connection.Unblocked()), "go on")
    yield Behaviour("nothing to Close", "Connection.Close", b"", "silence")
    yield Behaviour(
        "data after Close", "Connection.Close", GOOD[HELLO] + GOOD["Connection.Close"] + GOOD[HELLO], "go on"
    )


def generated(seed, count):
    """Good answers in which some bytes are changed, left out or too many."""
    rng = random.Random(seed)
    for number in range(count):
        at = rng.choice(STAGES)
        say = bytearray(GOOD[at])
        for _ in range(rng.randint(1, 4)):
            position = rng.randrange(len(say))
            match rng.choice(["change", "drop", "insert"]):
                case "change":
                    say[position] = rng.randrange(256)
                case "drop" if len(say) > 1:
                    del say[position]
                case _:
                    say[position:position] = rng.randbytes(rng.randint(1, 5))
        then = rng.choice(["go on", "go on", "close", "reset"])
        yield Behaviour(f"seed {seed}, number {number}: {say.hex()}", at, bytes(say), then)
