"""The TLS listener of a bench's broker: its configuration, its files, a new certificate while it runs."""

import ssl
import time
from pathlib import Path
from typing import Final

from labkit.brokers import ports
from labkit.brokers.certificates import SERVER_KEY_MODE, LabCertificates
from labkit.brokers.home import replace_file, unwritable
from labkit.errors import BrokerError

FILES: Final = "tls"  # the directory in the broker's own one; a container sees that and no other key
PLUGINS: Final = "[rabbitmq_management,rabbitmq_auth_mechanism_ssl].\n"
# Erlang keeps what it has read from PEM files for two minutes; only this makes a new one count at once.
FORGET_OLD_FILES: Final = "ssl:clear_pem_cache()."
LOOK: Final = 0.1  # seconds between two looks at the certificate that is shown
LOOK_TIMEOUT: Final = 5.0  # seconds for one TLS handshake


def configuration(listener: str, seen: str, *, demand_certificate: bool) -> str:
    """Return the lines of rabbitmq.conf for TLS, and for logging in by certificate (EXTERNAL).

    Args:
        listener: What to listen on, such as ``127.0.0.1:5671``.
        seen: The directory of :func:`place`'s files as the broker sees it.
        demand_certificate: Whether a client without a certificate is refused. One that shows a certificate is
            checked in either case.
    """
    return (
        f"listeners.ssl.1 = {listener}\n"
        f"ssl_options.cacertfile = {seen}/ca.pem\n"
        f"ssl_options.certfile = {seen}/server.pem\n"
        f"ssl_options.keyfile = {seen}/server.key\n"
        "ssl_options.versions.1 = tlsv1.3\n"
        "ssl_options.versions.2 = tlsv1.2\n"
        "ssl_options.verify = verify_peer\n"
        f"ssl_options.fail_if_no_peer_cert = {str(demand_certificate).lower()}\n"
        "ssl_cert_login_from = common_name\n"
        "auth_mechanisms.1 = PLAIN\n"
        "auth_mechanisms.2 = AMQPLAIN\n"
        "auth_mechanisms.3 = EXTERNAL\n"
    )


def place(certificates: LabCertificates, directory: Path) -> None:
    """Put the authority and the broker's certificate into *directory*, making what is missing or about to expire.

    Raises:
        BrokerError: it cannot be written.
    """
    server = certificates.server()
    where = directory / FILES
    try:
        where.mkdir(parents=True, exist_ok=True)
        where.chmod(0o755)  # the broker reads it as another user; the directory above is private
        held = {"server.key": server.key_file, "server.pem": server.cert_file, "ca.pem": certificates.ca_file}
        for name, source in held.items():
            replace_file(where / name, source.read_bytes(), mode=SERVER_KEY_MODE)
    except OSError as error:
        raise unwritable(where, error) from error


def wait_until_shown(cert_file: Path, port: int, timeout: float) -> None:
    """Return once whoever connects to *port* is shown the certificate in *cert_file*.

    Raises:
        BrokerError: another one, or none, is shown after *timeout* seconds.
    """
    wanted = ssl.PEM_cert_to_DER_cert(cert_file.read_text(encoding="ascii"))
    end = time.monotonic() + timeout
    while True:
        try:
            shown = ssl.get_server_certificate((ports.LOOPBACK, port), timeout=LOOK_TIMEOUT)
            if ssl.PEM_cert_to_DER_cert(shown) == wanted:
                return
            found = "it still shows the old one"
        except OSError as error:
            found = f"it shows none ({type(error).__name__})"
        if time.monotonic() >= end:
            raise BrokerError(f"the broker did not take its new certificate within {timeout:g} s: {found}")
        time.sleep(LOOK)
