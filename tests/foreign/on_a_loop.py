"""Run one scenario on one adapter: ``python -m tests.foreign.on_a_loop ADAPTER SCENARIO``, the URL on standard input.

A child process for each, for gevent patches, and Twisted's reactor starts only once. Says ``ok``, or exits with the
error.
"""

import sys
import traceback

from labkit import BrokerSettings, ConnectionFactory
from labkit.lab import adapters
from tests.foreign import scenarios

PATIENCE = 40.0  # seconds for one scenario, on a busy machine


class ScenarioLife(adapters.Life):
    """Go through a scenario as soon as the connection is open, then close it."""

    def __init__(self, scenario) -> None:
        super().__init__(lambda *_, **__: None)
        self._scenario = scenario
        self.error: BaseException | None = TimeoutError("it never began")

    def opened(self, connection) -> None:
        self.connection, self.error = connection, TimeoutError(f"not through within {PATIENCE:g} s")
        connection._adapter_call_later(PATIENCE, self._over)
        more = {"say": lambda text: print(text, flush=True)} if "say" in self._scenario.__code__.co_varnames else {}
        self._steps = self._scenario(connection, **more)
        self._go_on(None)

    def failed(self, _, error) -> None:
        self.error = error
        self.stop()

    def closed(self, _, __) -> None:
        # Not at once: the scenario may have asked for the end, too, and is told after this.
        self.connection._adapter_call_later(0.2, self.stop)

    def _go_on(self, value) -> None:
        try:
            answer = self._steps.send(value)
        except StopIteration:
            self.error = None
            self._over()
        except BaseException as exc:
            self.error = exc
            self._over()
        else:
            self._wait_for(answer, answer.__dict__.setdefault("seen", 0))

    def _wait_for(self, answer, seen) -> None:
        if len(answer.calls) > seen:
            answer.seen = seen + 1
            self._go_on(answer.calls[seen][0] if answer.calls[seen] else None)
        else:
            answer.resume = lambda: self._wait_for(answer, seen)

    def _over(self) -> None:
        if self.connection.is_open:
            self.connection.close()


def main(adapter: str, name: str) -> None:
    settings = BrokerSettings.from_url(sys.stdin.readline().strip())
    factory, life = ConnectionFactory(settings), ScenarioLife(getattr(scenarios, name))
    if adapter == "twisted":
        adapters._live_on_twisted(factory, life, lambda *_: None)
    elif adapter == "asyncio":
        adapters._live_on_asyncio(factory, life, lambda *_: None)
    else:
        adapters._live_on_pikas_loop(adapter, factory, life, lambda *_: None)
    if life.error is not None:
        traceback.print_exception(life.error)
        sys.exit(1)
    print("ok")


if __name__ == "__main__":
    main(*sys.argv[1:])
