"""A link's number is one link's, also of a proxy that was closed and opened again."""

import socket
import time

from labkit import BrokerSettings
from labkit.wire import Proxy


def test_the_numbers_of_links_go_on_when_a_proxy_opens_again():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = Proxy(BrokerSettings(host="127.0.0.1", port=listener.getsockname()[1]))
        for number in (1, 2):
            with proxy, socket.create_connection(proxy.settings().addresses[0]):
                ends = time.monotonic() + 5
                while not proxy.links and time.monotonic() < ends:
                    time.sleep(0.01)
                assert proxy.links == (number,)
    assert [link for link, _ in proxy.endings] == [1, 2]
