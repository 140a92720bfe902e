"""Try TCP options on a socket that is thrown away: only the kernel knows which values it takes. Connects to nothing."""

import socket
from collections.abc import Mapping

from pika.tcp_socket_opts import set_sock_opts

from labkit.errors import ConfigurationError
from labkit.validation import show


def check_tcp_options(options: Mapping[str, int]) -> None:
    """Raise ConfigurationError if the kernel refuses one of *options*.

    Nothing is said when there is no socket to try them on: who connects next will be told.
    """
    if not options:
        return
    try:
        tried = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    except OSError:
        return
    with tried:
        for name, value in options.items():
            try:
                set_sock_opts({name: value}, tried)
            except (OSError, OverflowError, TypeError) as exc:
                allowed = "a value that this system's kernel takes for it"
                raise ConfigurationError(
                    f"tcp_options: {name}={show(value)} is not allowed ({exc}); allowed: {allowed}",
                    field="tcp_options",
                    value={name: value},
                    allowed=allowed,
                ) from exc
