"""A server that speaks AMQP up to a point and something else from there on: what a broker never says, on request."""

import contextlib
import socket
import struct
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import pika.frame
from pika import spec

PATIENCE = 10.0  # seconds for which it holds a link on which it stays silent
DRIP = 0.02  # seconds between two bytes


def method(frame: object, channel: int = 0) -> bytes:
    """The bytes of one of Pika's methods, as a frame."""
    return bytes(pika.frame.Method(channel, frame).marshal())


def raw(payload: bytes, *, channel: int = 0, kind: int = 1, size: int | None = None, end: bytes = b"\xce") -> bytes:
    """A frame, or what only looks like one."""
    return struct.pack(">BHI", kind, channel, len(payload) if size is None else size) + payload + end


def start(
    properties: bytes = b"",
    *,
    mechanisms: bytes = b"PLAIN EXTERNAL",
    locales: bytes = b"en_US",
    version: tuple[int, int] = (0, 9),
) -> bytes:
    """Connection.Start, with *properties* as the inside of a field table."""
    texts = [struct.pack(">I", len(each)) + each for each in (properties, mechanisms, locales)]
    return raw(struct.pack(">HHBB", 10, 10, *version) + b"".join(texts))


def tune(channel_max: int = 2047, frame_max: int = 131_072, heartbeat: int = 60) -> bytes:
    """Connection.Tune."""
    return method(spec.Connection.Tune(channel_max, frame_max, heartbeat))


HELLO = "ProtocolHeader"
CAPABILITIES = b"\x12publisher_confirmst\1\x0abasic.nackt\1"
PROPERTIES = b"\x0ccapabilitiesF" + struct.pack(">I", len(CAPABILITIES)) + CAPABILITIES
GOOD = {
    HELLO: start(PROPERTIES),
    "Connection.StartOk": tune(),
    "Connection.TuneOk": b"",
    "Connection.Open": method(spec.Connection.OpenOk()),
    "Channel.Open": method(spec.Channel.OpenOk(), 1),
    "Confirm.Select": method(spec.Confirm.SelectOk(), 1),
    "Basic.Qos": method(spec.Basic.QosOk(), 1),
    "Channel.Close": method(spec.Channel.CloseOk(), 1),
    "Connection.Close": method(spec.Connection.CloseOk()),
}


@dataclass(frozen=True)
class Behaviour:
    """At the stage *at* it says *say* in place of what it should, *then* closes, resets, stays silent or goes on."""

    name: str
    at: str
    say: bytes
    then: str = "close"
    drips: bool = False

    def __str__(self) -> str:
        return f"{self.name} at {self.at}, then {self.then}"


class Attacker:
    """Listens on a port of its own and treats whoever comes alike. A context manager; one thread a link."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=16)
        self.port: int = self._listener.getsockname()[1]
        self._links: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._listen, name="attacker")]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in (self._listener, *self._links):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
        for each in (self._listener, *self._links):
            each.close()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = self._listener.accept()
                self._links.append(link)
                thread = threading.Thread(target=self._serve, args=(link,), name="attacker")
                self._threads.append(thread)
                thread.start()

    def _serve(self, link: socket.socket) -> None:
        with contextlib.suppress(OSError), link:
            link.settimeout(PATIENCE)
            heard = link.recv(65536)
            if not heard or not self._answer(link, HELLO):
                return
            heard = heard[8:]
            while True:
                size, frame = pika.frame.decode_frame(heard)
                heard = heard[size:]
                if frame is None:
                    more = link.recv(65536)
                    if not more:
                        return
                    heard += more
                elif isinstance(frame, pika.frame.Method) and not self._answer(link, frame.method.NAME):
                    return

    def _answer(self, link: socket.socket, heard: str) -> bool:
        """Say what *heard* gets; whether it goes on."""
        does = self.behaviour
        if heard != does.at:
            link.sendall(GOOD.get(heard, b""))
            return True
        for piece in [does.say[i : i + 1] for i in range(len(does.say))] if does.drips else [does.say]:
            link.sendall(piece)
            time.sleep(DRIP if does.drips else 0)
        if does.then == "silence":
            while link.recv(65536):
                pass
        elif does.then == "reset":
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return does.then == "go on"
