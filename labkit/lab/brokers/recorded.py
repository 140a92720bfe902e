"""What the backends that start a broker themselves share: it is described in the bench directory's state file."""

from pathlib import Path

from labkit.errors import BrokerError
from labkit.lab.brokers import ports
from labkit.lab.brokers.interface import Broker
from labkit.lab.brokers.state import Record, StateFile
from labkit.settings import BrokerSettings


class RecordedBroker(Broker):
    """A broker that labkit started: any process that may read the state file may drive it."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._home = home
        self._state = StateFile(home)

    @property
    def capabilities(self) -> frozenset[str]:
        """Everything."""
        return frozenset({"process", "alarm", "management", "logs"})

    @property
    def management_url(self) -> str:
        """The management page's address."""
        return f"http://{ports.LOOPBACK}:{self._record().management_port}"

    def _base_settings(self) -> BrokerSettings:
        record = self._record()
        return BrokerSettings(
            host=ports.LOOPBACK, port=record.amqp_port, username=record.username, password=record.password
        )

    def _record(self) -> Record:
        """Return what is recorded now: another process may have restarted the broker meanwhile."""
        record = self._state.read()
        if record is None or record.backend != self.backend:
            raise BrokerError(f"there is no broker in {self._home} any more: `labkit up` starts one")
        return record
