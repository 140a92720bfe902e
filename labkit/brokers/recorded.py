"""What the backends that start a broker themselves share: it is described in the bench directory's state file."""

import time
from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from labkit.brokers import encryption, ports, ready
from labkit.brokers.certificates import LabCertificates
from labkit.brokers.credentials import LAB_USER
from labkit.brokers.interface import Broker
from labkit.brokers.state import Record, StateFile
from labkit.errors import BrokerError
from labkit.settings.settings import BrokerSettings
from labkit.settings.tls import TlsSettings

SHOWN_WITHIN = 10.0  # seconds for a new certificate to be shown; it takes milliseconds


class RecordedBroker(Broker):
    """A broker that labkit started: any process that may read the state file may drive it."""

    directory: Path  # the backend's own, in the bench directory

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._home = home
        self._state = StateFile(home)

    @property
    def capabilities(self) -> frozenset[str]:
        """Everything; "tls" unless an older labkit started it."""
        record = self._state.read()
        tls = {"tls"} if record is not None and record.amqps_port else set()
        return frozenset({"process", "alarm", "management", "logs"} | tls)

    @cached_property
    def certificates(self) -> LabCertificates:
        """The bench's certificate authority, which signed this broker's certificate."""
        return LabCertificates(self._home)

    @property
    def management_url(self) -> str:
        """The management page's address."""
        return f"http://{ports.LOOPBACK}:{self._record().management_port}"

    def _base_settings(self) -> BrokerSettings:
        record = self._record()
        return BrokerSettings(
            host=ports.LOOPBACK, port=record.amqp_port, username=record.username, password=record.password
        )

    def _tls_settings(self, client: str | None = None) -> BrokerSettings:
        record = self._record()
        if not record.amqps_port:
            raise BrokerError("this broker was started without a TLS listener: `labkit down`, then `labkit up`")
        shown = self.certificates.client(client)._asdict() if client else {}
        tls = TlsSettings(ca_file=self.certificates.ca_file, **shown)
        return self._base_settings().replace(port=record.amqps_port, tls=tls)

    def rotate_certificate(self) -> None:
        """Give the TLS listener a new certificate and key while it runs, and return once new connections are shown it.

        Open connections stay as they are. A handshake that comes between the two files may fail, and works when
        tried again.

        Raises:
            BrokerError: it does not run, has no TLS listener, or does not take the certificate.
        """
        with self._state.lock():
            port = self._tls_settings().port or 0
            renewed = self.certificates.renew_server()
            encryption.place(self.certificates, self.directory)
            self.ctl("eval", encryption.FORGET_OLD_FILES)
            encryption.wait_until_shown(renewed.cert_file, port, SHOWN_WITHIN)

    def _wait_until_ready(self, timeout: float, *, ended: Callable[[], str | None]) -> None:
        """Return once it answers a handshake on its plain port and, where it has one, on its TLS port."""
        end = time.monotonic() + timeout
        ready.wait_until_ready(self.settings(), timeout=timeout, ended=ended, clue=self._clue)
        if not self._record().amqps_port:
            return
        encrypted = self._tls_settings(client=LAB_USER)  # a listener that demands a certificate gets one
        left = max(1.0, end - time.monotonic())
        ready.wait_until_ready(encrypted, timeout=left, ended=ended, clue=self._clue)

    @abstractmethod
    def _clue(self) -> str:
        """Return the line of the log that says most about why it ended."""

    def _record(self) -> Record:
        """Return what is recorded now: another process may have restarted the broker meanwhile."""
        record = self._state.read()
        if record is None or record.backend != self.backend:
            raise BrokerError(f"there is no broker in {self._home} any more: `labkit up` starts one")
        return record
