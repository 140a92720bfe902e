"""Contexts that verify. Files are read here, before any network I/O; nothing here opens a socket."""

import ssl
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from labkit.errors import ConfigurationError
from labkit.settings.certificates import Certificate, warn_if_short
from labkit.validation import FilePath, Name, Pem, Secret, SecretPem, Settings, ShortText, Text, not_empty

VERSIONS = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}


class InsecureTls(UserWarning):
    """A TLS connection is about to be made that verifies nobody: whoever answers can read and change everything."""


class TlsSettings(Settings):
    """How to speak TLS to the broker. Certificate and name are verified unless ``insecure`` is True.

    Immutable, hashable, safe to share. The files are read each time a connection is made, and not here: a certificate
    that was renewed is used from the next connection on.
    """

    ca_file: FilePath | None = Field(
        None, description="a PEM file of the authorities to trust; None with no ca_data: the system's own"
    )
    ca_data: Pem | None = Field(None, description="the authorities as PEM, text or bytes, instead of ca_file")
    cert_file: FilePath | None = Field(None, description="our certificate, a PEM file; None: show none")
    cert_data: SecretPem | None = Field(
        None, description="our certificate and its key as PEM, text or bytes, instead of cert_file and key_file"
    )
    key_file: FilePath | None = Field(None, description="its key, a PEM file; None: the key is in cert_file")
    key_password: Annotated[Secret, BeforeValidator(not_empty)] | None = Field(
        None, description="the key's password; None: it has none"
    )
    server_name: ShortText | None = Field(
        None, description="the name the broker's certificate must hold; None: the host that was asked for"
    )
    minimum_version: Literal["TLSv1.2", "TLSv1.3"] = Field("TLSv1.2", description="'TLSv1.2' or 'TLSv1.3'")
    ciphers: Text | None = Field(None, description="an OpenSSL cipher list; None: Python's default")
    insecure: bool = Field(
        False, description="True switches both checks off, and warns each time: for a lesson, never for a service"
    )

    def __init__(self, **values: Any) -> None:
        # Written out so that a type checker accepts plain text for a secret and a path for a file.
        super().__init__(**values)

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.ca_file is not None and self.ca_data is not None:
            raise ConfigurationError("ca_file and ca_data: give one of them", field="ca_data", allowed="one of them")
        if self.cert_data is not None and (self.cert_file is not None or self.key_file is not None):
            allowed = "cert_data alone, or the files"
            raise ConfigurationError(f"cert_data: {allowed}", field="cert_data", allowed=allowed)
        for field in ("key_file", "key_password"):
            if getattr(self, field) is not None and not self.shows_certificate:
                raise ConfigurationError(
                    f"{field}: says nothing without cert_file", field=field, allowed="together with cert_file"
                )
        return self

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, Name("(PEM)") if name == "ca_data" else value

    @property
    def shows_certificate(self) -> bool:
        """Whether the broker is shown a certificate of ours."""
        return self.cert_file is not None or self.cert_data is not None

    def certificate(self) -> Certificate | None:
        """Return what our certificate says of itself now; reads the file. None: we show none.

        ``tls.certificate().days_left()`` is worth monitoring. Below 30 days each connection logs a warning.

        Raises:
            ConfigurationError: the file is missing, cannot be read, or holds no certificate.
        """
        if self.cert_data is not None:
            pem, field = self.cert_data.get_secret_value(), "cert_data"
        elif self.cert_file is not None:
            pem, field = _read("cert_file", self.cert_file).decode("ascii", "replace"), "cert_file"
        else:
            return None
        with _named(field, "a PEM certificate"):
            return Certificate.from_pem(pem)

    def make_context(self) -> ssl.SSLContext:
        """Return a new client context that checks the certificate and the name, unless ``insecure`` says not to.

        Reads the files. ``ssl.create_default_context`` sets both checks; a bare ``SSLContext(PROTOCOL_TLS)`` sets
        neither, and loading an authority into it does not change that (Python docs, ssl, "Security considerations").
        With an authority given, the system's own are not trusted as well.

        Raises:
            ConfigurationError: a file is missing, cannot be read, or does not hold what it should.
        """
        if self.ca_file is not None:
            _read("ca_file", self.ca_file)
        with _named("ca_file" if self.ca_file else "ca_data", "certificates in PEM form"):
            context = ssl.create_default_context(cafile=self.ca_file, cadata=self.ca_data)
        context.minimum_version = VERSIONS[self.minimum_version]
        if self.insecure:
            _warn_that_it_is_insecure()
            context.check_hostname = False  # labkit: ignore[tls-not-verified]
            context.verify_mode = ssl.CERT_NONE  # labkit: ignore[tls-not-verified]
        if self.ciphers is not None:
            with _named("ciphers", "an OpenSSL cipher list such as 'ECDHE+AESGCM'"):
                context.set_ciphers(self.ciphers)
        if self.shows_certificate:
            self._load_own_certificate(context)
            with suppress(ConfigurationError):  # OpenSSL reads more kinds than we do
                warn_if_short("our own", self.certificate())
        return context

    def _load_own_certificate(self, context: ssl.SSLContext) -> None:
        for field, path in (("cert_file", self.cert_file), ("key_file", self.key_file)):
            if path is not None:
                _read(field, path)
        # Without a password given, OpenSSL would ask for one at the terminal and wait forever.
        password = self.key_password.get_secret_value() if self.key_password is not None else ""
        name = "cert_file" if self.cert_data is None else "cert_data"
        with (
            _named(name, "a PEM certificate, its PEM key, and the key's password if it has one"),
            _as_file(self.cert_data.get_secret_value() if self.cert_data else None) as written,
        ):
            context.load_cert_chain(written or self.cert_file or "", self.key_file, password)


def _warn_that_it_is_insecure() -> None:
    # Without a registry of what was said before, Python says it each time.
    warnings.warn_explicit(
        "insecure=True: this TLS connection checks neither certificate nor name, so whoever answers can read and "
        "change everything; give TlsSettings.ca_file instead",
        InsecureTls,
        filename=__name__,
        lineno=0,
    )


@contextmanager
def _as_file(pem: str | None) -> Iterator[str | None]:
    """Have *pem* in a file for this user's eyes only while the block runs: Python's ``ssl`` takes files only."""
    if pem is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="labkit-") as private:  # mode 0700
        path = Path(private) / "own.pem"
        path.touch(mode=0o600)
        path.write_text(pem, encoding="ascii")
        yield str(path)


def _read(field: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
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
