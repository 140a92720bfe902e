"""What a publisher and a consumer do with the time they are given. No thread, no broker."""

from types import SimpleNamespace

from labkit import BrokerSettings, Connection, Publisher
from labkit.messaging import base as recovering


class SlowLock:
    """Stands in for the lock that another thread holds for a while."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds = clock, seconds

    def acquire(self, timeout):
        assert timeout > self.seconds
        self.clock.now += self.seconds
        return True

    def release(self):
        pass


def test_the_time_that_another_threads_open_took_is_not_spent_twice(monkeypatch):
    clock, given = SimpleNamespace(now=100.0), {}
    monkeypatch.setattr(recovering, "time", SimpleNamespace(monotonic=lambda: clock.now))
    connection = Connection(BrokerSettings(), recovery=True)
    monkeypatch.setattr(connection, "_add_role", lambda role, timeout: given.update(adding=timeout))
    monkeypatch.setattr(connection, "open", lambda deadline: given.update(opening=deadline))
    publisher = Publisher(connection)
    monkeypatch.setattr(publisher, "_opening", SlowLock(clock, 4.0))
    monkeypatch.setattr(
        publisher, "_wait_until_ready", lambda role, ends, seconds: given.update(ready=ends - clock.now)
    )
    publisher.open(deadline=10.0)
    assert given == {"adding": 6.0, "opening": 6.0, "ready": 6.0}
