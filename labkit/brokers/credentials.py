"""The lab user's password, and the definitions that carry it into a broker as a hash. No I/O."""

import base64
import hashlib
import json
import secrets

from labkit.errors import ConfigurationError
from labkit.values import check_type, checked_name

SHORTEST = (
    12  # characters; NIST SP 800-63B-4 asks for 15 where nothing else protects the account, 8 where something does
)
DIFFERENT = 6  # of them
STRONG = f"{SHORTEST} characters or more, {DIFFERENT} of them different, and the user's name not among them"
LAB_USER = "lab"


def new_password() -> str:
    """Return a password that needs no quoting in a URL or a shell."""
    return secrets.token_urlsafe(18)


def check_password(password: str, user: str) -> None:
    """Refuse a password that a stranger would soon have guessed; the error does not show it.

    Raises:
        ConfigurationError: it is too short, repeats itself, or holds the user's name.
    """
    is_strong = len(password) >= SHORTEST and len(set(password)) >= DIFFERENT
    if not is_strong or user.lower() in password.lower():
        raise ConfigurationError(f"password: too weak; allowed: {STRONG}", field="password", allowed=STRONG)


def check_user(name: str, password: str | None) -> None:
    """Refuse what cannot be a user; None for a password: it logs in by its certificate.

    Raises:
        ConfigurationError: the name is not text of 1 to 255 bytes, or the password is not text, or weak.
    """
    checked_name("name", name)
    if password is not None:
        check_type("password", password, str)
        check_password(password, name)


def password_hash(password: str, salt: bytes | None = None) -> str:
    """Return RabbitMQ's salted SHA-256 of *password* (RabbitMQ documentation, "Passwords", algorithm 3).

    Args:
        password: The clear text.
        salt: Four bytes; None draws them.
    """
    salt = secrets.token_bytes(4) if salt is None else salt
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode("ascii")


def definitions(username: str, password: str) -> str:
    """Return the definitions (JSON) of a fresh broker: the default virtual host, and *username* as the only user.

    A broker that imports definitions makes no ``guest``, whose password everybody knows (RabbitMQ documentation,
    "Access Control", "Default Virtual Host and User").
    """
    user = {
        "name": username,
        "password_hash": password_hash(password),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": ["administrator"],
    }
    permission = {"user": username, "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}
    return json.dumps({"vhosts": [{"name": "/"}], "users": [user], "permissions": [permission]}, indent=1)
