"""From what ended a connect to the labkit error that says so: one class a cause, the fix in its text. No I/O."""

import re
import ssl
from collections.abc import Sequence

from labkit.errors import (
    AccessRefused,
    AuthenticationFailed,
    CertificateExpired,
    CertificateNameMismatch,
    CertificateNotTrusted,
    CertificateNotYetValid,
    ClientCertificateMissing,
    ClientCertificateRefused,
    ConnectError,
    NotTls,
    TlsError,
    TlsRequired,
)
from labkit.verdicts import SPEAKS_TLS, Kind, classify, describe, is_tls_failure, reply_code, root_cause


def connect_error(
    cause: BaseException, *, hosts: Sequence[str], attempts: int, elapsed: float, shows_certificate: bool = False
) -> ConnectError:
    """Return our error for a connect that failed with *cause*; the caller raises it ``from cause``.

    Its text names the hosts, the attempts, the seconds and a cause that is never empty. *shows_certificate*: whether
    we had a client certificate to show.
    """
    cls, clue = _connect_class(cause, shows_certificate)
    tries = "1 attempt" if attempts == 1 else f"{attempts} attempts"
    message = f"no connection to {', '.join(hosts)} after {tries} in {elapsed:.1f} s: {describe(cause)}"
    return cls(f"{message} ({clue})" if clue else message, hosts=hosts, attempts=attempts, elapsed=elapsed)


def _connect_class(cause: BaseException, shows_certificate: bool) -> tuple[type[ConnectError], str]:
    """Return the class, and the next clue for whoever reads the text."""
    if is_tls_failure(cause):
        return _tls_class(root_cause(cause), shows_certificate)
    verdict = classify(cause)
    if verdict.kind is not Kind.REFUSED:
        return ConnectError, verdict.advice if verdict.kind is Kind.BUSY else ""
    name = type(root_cause(cause)).__name__
    if name == "AuthenticationError":  # Pika's, before it sends anything: it names the mechanism
        return (
            AuthenticationFailed,
            "the broker does not offer this mechanism; EXTERNAL needs its plugin and a TLS port",
        )
    if name == "ProbableAuthenticationError" or reply_code(cause) == 403:
        return AuthenticationFailed, "check the user name and the password; guest may log in from localhost only"
    if name == "ProbableAccessDeniedError" or reply_code(cause) == 530:
        return AccessRefused, "the login is right; check the virtual host's name and this user's permissions on it"
    return ConnectError, ""


# OpenSSL's X509_V_ERR_... numbers (x509_vfy.h): 9 not yet valid, 10 expired, 62 host name, 64 IP address.
_OF_THE_BROKER: dict[int, tuple[type[TlsError], str]] = {
    9: (CertificateNotYetValid, "check this machine's clock; if it is right, the broker needs one that is valid now"),
    10: (CertificateExpired, "check this machine's clock; if it is right, the broker needs a new certificate"),
    62: (CertificateNameMismatch, "use the host name in the certificate, or set TlsSettings.server_name"),
    64: (CertificateNameMismatch, "use the address in the certificate, or set TlsSettings.server_name"),
}
# What OpenSSL says, in capitals; alerts (RFC 8446, 6.2) are the broker's words. The first that fits.
_TLS_TEXTS: tuple[tuple[str, type[TlsError], str], ...] = (
    (SPEAKS_TLS, TlsRequired, "give TlsSettings, or use the port for plain AMQP, usually 5672"),
    (
        r"WRONG[ _]VERSION[ _]NUMBER|RECORD[ _]LAYER[ _]FAILURE|HTTP[ _]REQUEST",
        NotTls,
        "that port speaks plain AMQP; the TLS port is usually 5671",
    ),
    (
        r"CERTIFICATE[ _]REQUIRED",
        ClientCertificateMissing,
        "give one that the broker trusts: TlsSettings.cert_file and key_file",
    ),
    (
        r"ALERT.*(CERTIFICATE|UNKNOWN[ _]CA|ACCESS[ _]DENIED)",
        ClientCertificateRefused,
        "give one that is valid now and signed by whom the broker trusts: TlsSettings.cert_file and key_file",
    ),
    (
        r"PROTOCOL[ _]VERSION|UNSUPPORTED[ _]PROTOCOL|NO[ _](PROTOCOLS|SHARED|CIPHER)|INSUFFICIENT[ _]SECURITY",
        TlsError,
        "the two sides have no TLS version or cipher in common: TlsSettings.minimum_version and ciphers",
    ),
)
# A server of TLS 1.2 says no more than this when the client certificate is missing, and when no cipher is common.
_HANDSHAKE_FAILURE = re.compile(r"ALERT.*HANDSHAKE[ _]FAILURE", re.DOTALL)


def _tls_class(cause: BaseException, shows_certificate: bool) -> tuple[type[TlsError], str]:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return _OF_THE_BROKER.get(
            cause.verify_code, (CertificateNotTrusted, "give the authority that signed it: TlsSettings.ca_file")
        )
    text = str(cause).upper()
    if _HANDSHAKE_FAILURE.search(text) and not shows_certificate:
        return ClientCertificateMissing, "give one: TlsSettings.cert_file and key_file; else compare the ciphers"
    for pattern, cls, clue in _TLS_TEXTS:
        if re.search(pattern, text, re.DOTALL):
            return cls, clue
    return TlsError, "compare the certificates and the TLS versions of both sides; the broker's log says more"
