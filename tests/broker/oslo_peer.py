"""A real oslo.messaging in a process of its own: ``oslo_peer.py OPTIONS`` reads a URL, then does what it reads.

One JSON object a line each way: {"do": "call", ...} in, {"ok": ...} or {"error": class, "text": ...} out. It never
imports labkit.
"""

import json
import logging
import sys
import time
import warnings

warnings.simplefilter("ignore")
logging.basicConfig(level=logging.CRITICAL)

import bank_errors  # noqa: E402 - beside this file
import oslo_messaging  # noqa: E402
from oslo_config import cfg  # noqa: E402

CONF = cfg.CONF  # the global one: a private one lacks options that it needs itself


class MineError(Exception):
    """Of a module that nobody lists, unless the caller says so."""


class Sums:
    """What it serves."""

    target = oslo_messaging.Target(version="1.2")

    def __init__(self, name, seen):
        self.name = name
        self.seen = seen

    def add(self, ctxt, a, b):
        self.seen.append([self.name, "add", a, b])
        return a + b

    def echo(self, ctxt, value):
        return value

    def nothing(self, ctxt):
        return None

    def who(self, ctxt):
        return {"server": self.name, "ctxt": {key: ctxt[key] for key in ctxt if key != "client_timeout"}}

    def overdraw(self, ctxt):
        raise bank_errors.OverdrawnError("ann", 7)

    def fail(self, ctxt, kind):
        raise {"value": ValueError, "mine": MineError}[kind]("no")

    def slow(self, ctxt, seconds):
        time.sleep(seconds)
        return "done"


class Spaced:
    target = oslo_messaging.Target(namespace="space", version="2.0")

    def name(self, ctxt):
        return "spaced"


class Heard:
    """What it listens to."""

    def __init__(self, seen, answers):
        self.seen = seen
        self.answers = answers

    def _hear(self, priority, ctxt, publisher_id, event_type, payload):
        ctxt = {key: value for key, value in ctxt.items() if key != "client_timeout"}  # of its own making
        self.seen.append([priority, ctxt, publisher_id, event_type, payload])
        answer = self.answers.pop(0) if self.answers else None
        return oslo_messaging.NotificationResult.REQUEUE if answer == "requeue" else None

    @staticmethod
    def _of(priority):
        def hear(self, ctxt, publisher_id, event_type, payload, metadata):
            return self._hear(priority, ctxt, publisher_id, event_type, payload)

        return hear


for each_priority in ("audit", "debug", "info", "warn", "error", "critical"):
    setattr(Heard, each_priority, Heard._of(each_priority))


class Redacted:
    def __init__(self, values):
        self.values = values

    def redacted_copy(self):
        return self

    def to_dict(self):
        return self.values


class Peer:
    def __init__(self, url):
        self.url = url
        self.seen = []
        self.heard = []
        self.servers = []
        self._transports = {}

    def transport(self, kind, allowed=()):
        key = (kind, tuple(allowed))
        if key not in self._transports:
            if kind == "rpc":
                made = oslo_messaging.get_rpc_transport(CONF, self.url, allowed_remote_exmods=list(allowed))
            else:
                made = oslo_messaging.get_notification_transport(CONF, self.url)
            self._transports[key] = made
        return self._transports[key]

    def client(self, topic="sums", exchange=None, allowed=(), at_least_once=False, **prepared):
        options = oslo_messaging.TransportOptions(at_least_once=True) if at_least_once else None
        target = oslo_messaging.Target(exchange=exchange, topic=topic)
        client = oslo_messaging.get_rpc_client(
            self.transport("rpc", allowed), target, timeout=10, transport_options=options
        )
        return client.prepare(**prepared) if prepared else client

    def serve(self, server="one", topic="sums", exchange=None):
        target = oslo_messaging.Target(exchange=exchange, topic=topic, server=server)
        endpoints = [Sums(server, self.seen), Spaced()]
        made = oslo_messaging.get_rpc_server(self.transport("rpc"), target, endpoints)
        made.start()
        self.servers.append(made)

    def listen(self, topics=("events",), pool=None, answers=()):
        targets = [oslo_messaging.Target(topic=each) for each in topics]
        made = oslo_messaging.get_notification_listener(
            self.transport("notify"), targets, [Heard(self.heard, list(answers))], allow_requeue=True, pool=pool
        )
        made.start()
        self.servers.append(made)

    def call(self, method, args, ctxt=None, how=None):
        return self.client(**(how or {})).call(ctxt or {}, method, **args)

    def cast(self, method, args, ctxt=None, how=None):
        self.client(**(how or {})).cast(ctxt or {}, method, **args)

    def notify(self, priority, event_type, payload, ctxt=None, driver="messagingv2", topics=("events",)):
        notifier = oslo_messaging.Notifier(self.transport("notify"), "peer", driver=driver, topics=list(topics))
        getattr(notifier, priority)(Redacted(ctxt) if ctxt else {}, event_type, payload)

    def what_was_seen(self):
        return {"calls": self.seen, "heard": self.heard}

    def stop(self):
        for each in self.servers:
            each.stop()
            each.wait()
        self.servers = []


def main():
    url, options = sys.stdin.readline().strip(), json.loads(sys.argv[1])
    CONF([], project="peer")
    oslo_messaging.get_rpc_transport(CONF, url)  # registers the options
    for name, value in options.items():
        CONF.set_override(name, value, group="oslo_messaging_rabbit")
    peer = Peer(url)
    out, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = {"ok": getattr(peer, asked.pop("do"))(**asked)}
        except Exception as exc:
            answer = {
                "error": type(exc).__name__,
                "text": str(exc),
                "of": [each.__name__ for each in type(exc).__mro__],
            }
            answer["exc_type"] = getattr(exc, "exc_type", None)
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
