"""A log handler that publishes each record, as one does that ships logs by RabbitMQ."""

import logging
import threading
from contextlib import contextmanager

from labkit import LabkitError, WrongThread

APPLICATION = logging.getLogger("an.application")
LOGGERS = (logging.getLogger("pika"), logging.getLogger("labkit"), APPLICATION)


class PublishingHandler(logging.Handler):
    """Publishes each log record; what labkit says against it is passed over."""

    def __init__(self, publisher):
        super().__init__(logging.DEBUG)
        self.publisher = publisher
        self.count = 0
        self.refused = 0  # logged by the I/O thread, which cannot wait for itself
        self._inside = threading.local()

    def emit(self, record):
        if getattr(self._inside, "yes", False):
            return
        self._inside.yes = True
        try:
            self.publisher.publish(record.getMessage()[:200], routing_key="log", deadline=1.0)
            self.count += 1
        except WrongThread:
            self.refused += 1
        except LabkitError:
            pass
        finally:
            self._inside.yes = False


@contextmanager
def logs_published_by(publisher):
    """All that Pika, labkit and an application log, down to DEBUG, goes through *publisher* while the block lasts."""
    handler = PublishingHandler(publisher)
    levels = [each.level for each in LOGGERS]
    for each in LOGGERS:
        each.addHandler(handler)
        each.setLevel(logging.DEBUG)
    try:
        yield handler
    finally:
        for each, level in zip(LOGGERS, levels, strict=True):
            each.removeHandler(handler)
            each.setLevel(level)
