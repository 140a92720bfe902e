"""RabbitMQ's management API, as far as the bench needs it. Knows HTTP, no backend."""

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from labkit.errors import BrokerError
from labkit.extras import needs
from labkit.settings.tls import TlsSettings

if TYPE_CHECKING:
    import httpx

TIMEOUT = 10.0  # seconds a request
SHOWN = 300  # characters of an unexpected answer that go into an error's text


class Management:
    """A client of one broker's management API.

    Thread-safe. It keeps no connection between requests, so there is nothing to close.
    """

    def __init__(
        self, url: str, username: str, password: str, *, timeout: float = TIMEOUT, tls: TlsSettings | None = None
    ) -> None:
        self.url = url
        self._tls = tls  # for an https:// page; None: the system's authorities
        self._auth = (username, password)
        self._timeout = timeout

    def get(self, path: str) -> Any:
        """Return the JSON at *path* (below ``/api/``); None where there is no such thing (404).

        Raises:
            BrokerError: no answer in time, a refusal, or no management API; the text names the request.
        """
        answer = self._ask("GET", path)
        if answer.status_code == 404:
            return None
        try:
            return answer.json()
        except ValueError as error:
            raise BrokerError(f"GET {self.url}/api/{path}: this is no answer of a management API") from error

    def passes(self, path: str) -> bool:
        """Return whether the health check at *path* passes: the API answers 503 if it does not.

        Raises:
            BrokerError: as for :meth:`get`.
        """
        return self._ask("GET", path, allowed=(503,)).status_code != 503

    def put(self, path: str, body: Any) -> None:
        """Create or change what *path* names.

        Raises:
            BrokerError: as for :meth:`get`, or it belongs to something that is not there.
        """
        if self._ask("PUT", path, body=body).status_code == 404:
            raise BrokerError(f"PUT {self.url}/api/{path}: there is no such thing")

    def delete(self, path: str, *, reason: str | None = None) -> bool:
        """Delete what *path* names and return whether it was there.

        Args:
            path: Below ``/api/``.
            reason: What a closed connection's client is told.
        """
        headers = {"X-Reason": reason} if reason else {}
        return self._ask("DELETE", path, headers=headers).status_code != 404

    def _ask(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        headers: dict[str, str] | None = None,
        allowed: tuple[int, ...] = (),
    ) -> "httpx.Response":
        with needs("brokers"):
            import httpx  # on first use: it takes 0.3 s, which a broker's start is not to wait for

        target = f"{self.url}/api/{path}"
        # Environment proxies are for the world outside; this is the classroom's own broker.
        is_https = self.url.startswith("https:")
        # Without TLS, no authorities: to load them takes longer than the whole request.
        verify = self._tls.make_context() if self._tls is not None and is_https else is_https
        with httpx.Client(auth=self._auth, timeout=self._timeout, trust_env=False, verify=verify) as client:
            for is_last in (False, True):
                try:
                    answer = client.request(method, target, json=body, headers=headers)
                    break
                except (httpx.RemoteProtocolError, httpx.ReadError) as error:
                    # The broker hangs up on a connection now and then (seen after 1,200 requests).
                    # Every request here can be said twice, so say it once more.
                    if is_last:
                        raise BrokerError(f"{method} {target}: the connection broke twice ({error})") from error
                except httpx.HTTPError as error:
                    text = str(error) or type(error).__name__
                    raise BrokerError(f"{method} {target}: no answer within {self._timeout:g} s ({text})") from error
        if answer.status_code == 401:
            raise BrokerError(f"{method} {target}: the broker does not accept user {self._auth[0]!r} here")
        if not answer.is_success and answer.status_code not in (404, *allowed):  # a redirect, too: nothing was done
            raise BrokerError(f"{method} {target}: HTTP {answer.status_code} {answer.text[:SHOWN].strip()}")
        return answer


def segment(name: str) -> str:
    """Return *name* quoted as one segment of a path: the default virtual host is ``%2F``."""
    return quote(name, safe="")
