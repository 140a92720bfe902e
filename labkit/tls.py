"""Contexts that verify. Files are read here, before any network I/O; nothing here opens a socket."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from labkit.errors import ConfigurationError
from labkit.validation import FilePath, Secret, Settings, ShortText, Text, not_empty

VERSIONS = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}


class TlsSettings(Settings):
    """How to speak TLS to the broker. Certificate and name are verified unless ``insecure`` is True.

    Immutable, hashable, safe to share. The files are read when a connection is made, not here.
    """

    ca_file: FilePath | None = Field(
        None, description="a PEM file of the authorities to trust; None with no ca_data: the system's own"
    )
    ca_data: Text | None = Field(None, description="the authorities as PEM text, instead of ca_file")
    cert_file: FilePath | None = Field(None, description="our certificate, a PEM file; None: show none")
    key_file: FilePath | None = Field(None, description="its key, a PEM file; None: the key is in cert_file")
    key_password: Annotated[Secret, BeforeValidator(not_empty)] | None = Field(
        None, description="the key's password; None: it has none"
    )
    server_name: ShortText | None = Field(
        None, description="the name the broker's certificate must hold; None: the host that was asked for"
    )
    minimum_version: Literal["TLSv1.2", "TLSv1.3"] = Field("TLSv1.2", description="'TLSv1.2' or 'TLSv1.3'")
    ciphers: Text | None = Field(None, description="an OpenSSL cipher list; None: Python's default")
    insecure: bool = Field(False, description="True switches both checks off: for a lesson, never for a service")

    def __init__(self, **values: Any) -> None:
        # Written out so that a type checker accepts plain text for a secret and a path for a file.
        super().__init__(**values)

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.ca_file is not None and self.ca_data is not None:
            raise ConfigurationError("ca_file and ca_data: give one of them", field="ca_data", allowed="one of them")
        for field in ("key_file", "key_password"):
            if getattr(self, field) is not None and self.cert_file is None:
                raise ConfigurationError(
                    f"{field}: says nothing without cert_file", field=field, allowed="together with cert_file"
                )
        return self

    def make_context(self) -> ssl.SSLContext:
        """Return a new context made from these settings; reads the files.

        Raises:
            ConfigurationError: a file is missing, cannot be read, or does not hold what it should.
        """
        return make_context(
            ca_file=self.ca_file,
            ca_data=self.ca_data,
            cert_file=self.cert_file,
            key_file=self.key_file,
            key_password=None if self.key_password is None else self.key_password.get_secret_value(),
            minimum_version=self.minimum_version,
            ciphers=self.ciphers,
            insecure=self.insecure,
        )


def make_context(
    *,
    ca_file: str | None = None,
    ca_data: str | None = None,
    cert_file: str | None = None,
    key_file: str | None = None,
    key_password: str | None = None,
    minimum_version: str = "TLSv1.2",
    ciphers: str | None = None,
    insecure: bool = False,
) -> ssl.SSLContext:
    """Return a client context that checks the certificate and the name, unless *insecure* says not to.

    ``ssl.create_default_context`` sets both checks; a bare ``SSLContext(PROTOCOL_TLS)`` sets neither, and
    loading an authority into it does not change that (Python docs, ssl, "Security considerations").
    With an authority given, the system's own are not trusted as well.

    Raises:
        ConfigurationError: a file is missing, cannot be read, or does not hold what it should.
    """
    if ca_file is not None:
        _must_be_readable("ca_file", ca_file)
    with _named("ca_file" if ca_file else "ca_data", "certificates in PEM form"):
        context = ssl.create_default_context(cafile=ca_file, cadata=ca_data)
    context.minimum_version = VERSIONS[minimum_version]
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if ciphers is not None:
        with _named("ciphers", "an OpenSSL cipher list such as 'ECDHE+AESGCM'"):
            context.set_ciphers(ciphers)
    if cert_file is not None:
        _must_be_readable("cert_file", cert_file)
        if key_file is not None:
            _must_be_readable("key_file", key_file)
        # Without a password given, OpenSSL would ask for one at the terminal and wait for ever.
        password = key_password if key_password is not None else ""
        with _named("cert_file", "a PEM certificate, its PEM key (key_file), and the key's password if it has one"):
            context.load_cert_chain(cert_file, key_file, password)
    return context


def _must_be_readable(field: str, path: str) -> None:
    try:
        with Path(path).open("rb"):
            return
    except OSError as exc:
        reason = exc.strerror or type(exc).__name__
    raise ConfigurationError(
        f"TlsSettings.{field}: cannot read {path!r} ({reason}); allowed: a PEM file that this process may read",
        field=field,
        value=path,
        allowed="a PEM file that this process may read",
    )


@contextmanager
def _named(field: str, allowed: str) -> Iterator[None]:
    """Turn OpenSSL's terse words ("[SSL] PEM lib") into the setting they are about."""
    try:
        yield
    except (ssl.SSLError, ValueError) as exc:
        message = f"TlsSettings.{field}: {exc}; allowed: {allowed}"
        raise ConfigurationError(message, field=field, allowed=allowed) from exc
