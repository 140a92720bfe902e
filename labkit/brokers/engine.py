"""The container engine: is one there, does it have the image, which compose command. Knows no RabbitMQ."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from labkit.errors import BrokerError
from labkit.extras import extra

PING_TIMEOUT = 10.0  # seconds
PULL_TIMEOUT = 120.0  # seconds for a whole pull
PULL_SILENCE = 30.0  # seconds without a word from the registry
TELL_EVERY = 3.0  # seconds between two lines of progress
OFFICIAL = "rabbitmq:4.3-management"
STANDIN = "labkit-rabbitmq:4-management"  # what `labkit image` builds where no registry can be reached


def sdk() -> Any:
    """Return docker's SDK. It takes 0.3 s to import: a broker without a container is not to wait for it."""
    return extra("brokers", "docker")


def engine_errors() -> tuple[type[Exception], ...]:
    """Return what the SDK raises when the engine is silent, gone or unwilling."""
    return sdk().errors.DockerException, extra("brokers", "requests").RequestException, OSError


class NoEngine(BrokerError):  # noqa: N818 - a fact, in the words of the errors beside it
    """No container engine answers."""


@contextlib.contextmanager
def connected(timeout: float = PING_TIMEOUT) -> Iterator[Any]:
    """Yield a client of the engine that the docker command would use; each request has *timeout* seconds.

    Raises:
        NoEngine: no engine answers; the text says where we asked, and why not.
    """
    if not os.environ.get("DOCKER_HOST") and not any(map(shutil.which, ("docker", "docker-compose"))):
        raise NoEngine("neither the command docker nor docker-compose is here")
    asked = "its default address"
    try:
        if os.environ.get("DOCKER_HOST"):
            asked = os.environ["DOCKER_HOST"]
            _knock(asked)
            client = sdk().from_env(timeout=timeout)
        else:
            # from_env() does not know docker's contexts (docker-py issue 3146), and Docker Desktop's
            # socket is named by nothing else.
            context = sdk().context.ContextAPI.get_current_context()
            if context is None:
                raise NoEngine("docker's current context does not exist: `docker context ls` shows which do")
            asked = context.Host or asked
            _knock(asked)
            client = sdk().DockerClient(base_url=context.Host, tls=context.TLSConfig or False, timeout=timeout)
    except engine_errors() as error:
        raise NoEngine(_no_engine(asked, error)) from error
    try:
        try:
            client.ping()
        except engine_errors() as error:
            raise NoEngine(_no_engine(asked, error)) from error
        yield client
    finally:
        client.close()


def engine_version() -> str | None:
    """Return the version of the engine that answers, or None; at most 3 s."""
    with contextlib.suppress(BrokerError, *engine_errors()), connected(timeout=3.0) as client:
        return str(client.version()["Version"])
    return None


def _knock(address: str) -> None:
    """Connect to the engine's Unix socket once: the SDK leaves its own socket open when nobody is there."""
    path = address.removeprefix("unix://")
    if path == address or sys.platform == "win32":
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PING_TIMEOUT)
        probe.connect(path)


def compose_command() -> list[str]:
    """Return the compose command of this machine: v2, or v1 where only that is there.

    Raises:
        BrokerError: neither.
    """
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        found = subprocess.run(
            ["docker", "compose", "version", "--short"], capture_output=True, text=True, timeout=20, check=False
        )
        if found.returncode == 0 and found.stdout.strip():
            return ["docker", "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    raise BrokerError("a container engine answers, but there is neither `docker compose` nor `docker-compose`")


def available_image(image: str | None, say: Callable[[str], None], *, may_pull: bool = True) -> str:
    """Return an image that is here: *image*, else the official one, else our stand-in, else the official one pulled.

    Raises:
        BrokerError: it is not here, and could not be pulled in time or was not to be pulled.
    """
    with connected(timeout=PULL_SILENCE) as client:
        for name in [image] if image else [OFFICIAL, STANDIN]:
            if _has(client, name):
                return name
        if not may_pull:
            raise BrokerError(f"{image or OFFICIAL} is not here: `labkit up` pulls it")
        pull(client, image or OFFICIAL, say)
    return image or OFFICIAL


def pull(client: Any, image: str, say: Callable[[str], None], timeout: float = PULL_TIMEOUT) -> None:
    """Pull *image*, telling *say* how far it is.

    Raises:
        BrokerError: no registry, no such image, or not whole after *timeout* seconds.
    """
    say(f"pulling {image} (at most {timeout:g} s)")
    began = told = time.monotonic()
    sizes: dict[str, tuple[int, int]] = {}
    try:
        for event in client.api.pull(image, stream=True, decode=True):
            now = time.monotonic()
            if "error" in event:
                raise BrokerError(f"cannot pull {image}: {event['error']}")
            if now - began > timeout:
                raise BrokerError(f"cannot pull {image}: not whole after {timeout:g} s; `docker pull {image}` goes on")
            detail = event.get("progressDetail") or {}
            if event.get("status") == "Downloading" and detail.get("total"):
                sizes[event["id"]] = (detail["current"], detail["total"])
            if sizes and now - told > TELL_EVERY:
                told = now
                done, whole = (sum(each[part] for each in sizes.values()) // 2**20 for part in (0, 1))
                say(f"pulling {image}: {done} of {whole} MB")
    except engine_errors() as error:
        raise BrokerError(f"cannot pull {image}: {_explanation(error)}") from error


def _has(client: Any, image: str) -> bool:
    try:
        client.images.get(image)
    except sdk().errors.ImageNotFound:
        return False
    except engine_errors() as error:
        raise BrokerError(f"the container engine cannot say whether it has {image}: {_explanation(error)}") from error
    return True


def _no_engine(asked: str, error: BaseException) -> str:
    text = _explanation(error)
    hint = "; this user may not ask it (group docker)" if "ermission denied" in text else ""
    return f"no container engine answers at {asked} ({text}){hint}"


def _explanation(error: BaseException) -> str:
    """Return the engine's own words, without the layers of the libraries around them."""
    said = getattr(error, "explanation", None)
    if said:
        return str(said)
    last = str(error)
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
        last = str(error) or last
    return last or type(error).__name__
