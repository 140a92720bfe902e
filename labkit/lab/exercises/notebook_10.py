"""Exercise of 10: repair a TLS context in three steps. Handshakes over a socket pair; no broker, nothing listens."""

import contextlib
import socket
import ssl
import tempfile
import threading
from pathlib import Path
from typing import Any

import trustme

from labkit.errors import ConfigurationError
from labkit.lab.checks import Exercise, run
from labkit.printable import a_type
from labkit.trials import NotYet

PATIENCE = 3.0  # seconds for a handshake; it takes milliseconds
GREETING = b"AMQP"
NAME = "localhost"


class Doors:
    """Servers that a good context must get into, or must refuse, and the files that it is made from."""

    def __init__(self, directory: Path) -> None:
        authority, stranger = trustme.CA(), trustme.CA()
        self.files = tuple(str(directory / name) for name in ("ca.pem", "client.pem", "client.key"))
        client = authority.issue_cert("client.example", common_name="ticketdesk")
        parts = (authority.cert_pem, client.cert_chain_pems[0], client.private_key_pem)
        for path, part in zip(self.files, parts, strict=True):
            part.write_to_path(path)
        self.broker = _server(authority.issue_cert(NAME))
        self.impostor = _server(stranger.issue_cert(NAME))
        self.neighbour = _server(authority.issue_cert("other.example"))
        self.strict = _server(authority.issue_cert(NAME), wants=authority)


def _server(certificate: Any, wants: Any = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    if wants is not None:
        wants.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def gets_in(client: ssl.SSLContext, server: ssl.SSLContext) -> bool:
    """Whether *client*, on its way to localhost, is let in by *server*, and trusts it."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with contextlib.suppress(OSError), server.wrap_socket(theirs, server_side=True) as link:
            link.sendall(GREETING)  # TLS 1.3: only what the server says afterwards shows that it has let us in

    for end in (ours, theirs):
        end.settimeout(PATIENCE)
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        with client.wrap_socket(ours, server_hostname=NAME) as link:
            return link.recv(len(GREETING)) == GREETING
    except (OSError, ValueError):  # a name that is not checked may also be one that cannot be
        return False
    finally:
        ours.close()
        thread.join(PATIENCE)
        theirs.close()


def _three_steps(answer: object) -> str:
    with tempfile.TemporaryDirectory(prefix="labkit-10-") as directory:
        doors = Doors(Path(directory))
        context = _context(answer, doors.files)
        for door, is_ours, hint in (
            (doors.impostor, False, "step 1: it lets in an impostor, whose certificate nobody here has signed"),
            (doors.broker, True, "step 1: now it refuses the broker too. Whose signatures does it trust?"),
            (doors.neighbour, False, "step 2: it takes a certificate for other.example, on its way to localhost"),
            (doors.strict, True, "step 3: a broker that wants a client certificate turns it away"),
        ):
            if gets_in(context, door) is not is_ours:
                raise NotYet(hint)
    return "it trusts one authority, checks the name, and can say who it is"


def _context(answer: object, files: tuple[str, ...]) -> ssl.SSLContext:
    try:
        context = run(answer, *files)
    except NotYet:
        raise
    except (OSError, ValueError, ConfigurationError) as exc:
        raise NotYet(f"make_context(ca_file, cert_file, key_file) raised {type(exc).__name__}") from exc
    if not isinstance(context, ssl.SSLContext):
        raise NotYet(f"make_context should return an ssl.SSLContext; it returned {a_type(context)}")
    return context


EXERCISES = (
    Exercise(
        "10.1",
        _three_steps,
        hints=(
            "Two lines switch something off, and one line that would trust somebody is missing.",
            "Step 1: verify_mode is ssl.CERT_REQUIRED, and load_verify_locations(ca_file). Step 2: check_hostname.",
            "Step 3: context.load_cert_chain(cert_file, key_file).",
        ),
        seconds=30.0,
    ),
)
