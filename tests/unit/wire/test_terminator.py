"""The TLS endpoint goes on listening, whatever one accept brings."""

import asyncio
import errno
import socket
import ssl

import trustme

from labkit import BrokerSettings
from labkit.wire import TlsTerminator


def test_a_terminator_that_had_no_descriptor_for_a_client_serves_the_next_one(tmp_path, monkeypatch):
    certificate, key, ca_file = (tmp_path / name for name in ("certificate.pem", "key.pem", "ca.pem"))
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(ca_file)
    loop_class = asyncio.SelectorEventLoop
    accept, failures = loop_class.sock_accept, [errno.EMFILE, errno.ECONNABORTED]

    async def failing_at_first(loop, sock):
        if failures:
            raise OSError(failures.pop(), "no luck")
        return await accept(loop, sock)

    monkeypatch.setattr(asyncio, "new_event_loop", loop_class)
    monkeypatch.setattr(loop_class, "sock_accept", failing_at_first)
    context = ssl.create_default_context(cafile=ca_file)
    with TlsTerminator(BrokerSettings(port=1), (certificate, key), ca_file=ca_file) as terminator:
        address = terminator.settings().addresses[0]
        with (
            socket.create_connection(address, timeout=5) as sock,
            context.wrap_socket(sock, server_hostname="127.0.0.1") as client,
        ):
            assert client.version()
    assert not failures
