"""The lab user's password, and the definitions that carry it into a broker as a hash. No I/O."""

import base64
import hashlib
import json
import secrets
from typing import Any

from labkit.errors import ConfigurationError

SHORTEST = (
    12  # characters; NIST SP 800-63B-4 asks for 15 where nothing else protects the account, 8 where something does
)
DIFFERENT = 6  # of them
STRONG = f"{SHORTEST} characters or more, {DIFFERENT} of them different, and the user's name not among them"
LAB_USER = "lab"
GUEST = "guest"  # RabbitMQ's own default user; importing definitions would leave it out


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


def password_hash(password: str, salt: bytes | None = None) -> str:
    """Return RabbitMQ's salted SHA-256 of *password* (RabbitMQ documentation, "Passwords", algorithm 3).

    Args:
        password: The clear text.
        salt: Four bytes; None draws them.
    """
    salt = secrets.token_bytes(4) if salt is None else salt
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode("ascii")


def definitions(username: str, password: str) -> str:
    """Return the definitions (JSON) of a fresh broker: the default virtual host, the lab user, and guest."""
    users: list[dict[str, Any]] = [
        {
            "name": name,
            "password_hash": password_hash(secret),
            "hashing_algorithm": "rabbit_password_hashing_sha256",
            "tags": ["administrator"],
        }
        for name, secret in ((username, password), (GUEST, GUEST))
    ]
    permissions = [
        {"user": user["name"], "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"} for user in users
    ]
    return json.dumps({"vhosts": [{"name": "/"}], "users": users, "permissions": permissions}, indent=1)
