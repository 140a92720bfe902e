"""The ground that settings stand on: frozen, checked, and clear about what is wrong.

The only module that reads pydantic's errors: it turns them into sentences with the field, the value unless
secret, and what is allowed. Nothing here echoes what may hold a secret.
"""

import datetime
import decimal
import difflib
import inspect
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, PlainSerializer, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from labkit.errors import ConfigurationError
from labkit.frozen import FrozenMapping

SECRET_FIELDS = frozenset({"password", "key_password", "cert_data"})
SHORT_STRING_MAX = 255  # bytes; AMQP 0-9-1, section 4.2.5.3 (Strings)
INT64 = 2**63
PREFETCH_MAX = 65535  # AMQP 0-9-1, section 1.8.3 (basic.qos): a short
SHOWN_MAX = 60  # characters of a value that an error repeats
TCP_OPTIONS = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
# What everybody types, and what is too far from the field's name for difflib.
SPOKEN = {
    "vhost": "virtual_host",
    "user": "username",
    "timeout": "stack_timeout",
    "connection_timeout": "stack_timeout",
    "ssl": "tls",
    "name": "connection_name",
}
# Values that look as if a secret had been pasted into the wrong field: a URL, user:password, a key.
SUSPECT = re.compile(r"://|@|PRIVATE KEY|^[^:]+:[^:]*[^:\d][^:]*$")


class Settings(BaseSettings):
    """What the settings classes share: frozen, complete errors, and no look at the environment."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, arbitrary_types_allowed=True, validate_default=True
    )

    def __init__(self, **values: Any) -> None:
        problem: ConfigurationError | None = None
        try:
            super().__init__(**values)
        except ValidationError as exc:
            problem = configuration_error(type(self).__name__, type(self).model_fields, exc, values)
        if problem is not None:  # outside the except block: pydantic's error, which holds the input, is not chained
            raise problem

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic-settings names these arguments
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take the constructor's keywords only: a settings object must mean the same in every process."""
        return (init_settings,)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with *changes*, validated like a new one.

        Raises:
            ConfigurationError: as the constructor does.
        """
        return type(self)(**{**self._values(), **changes})

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        for name, value in self._values().items():
            if value != type(self).model_fields[name].default:
                # A function's own repr ends in an address, which no two runs share.
                yield name, Name(value.__name__) if inspect.isfunction(value) else value

    def __str__(self) -> str:
        return repr(self)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [
            inspect.Parameter(name, keyword, default=field.default) for name, field in cls.model_fields.items()
        ]
        # What help() and Shift-Tab show. Pydantic's own spells out every validator.
        cls.__signature__ = inspect.Signature(parameters)

    def _values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in type(self).model_fields}


class Name(str):
    """Text that prints without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def configuration_error(
    owner: str, fields: Mapping[str, FieldInfo], error: ValidationError, values: Mapping[str, Any]
) -> ConfigurationError:
    """Return ours for pydantic's: one sentence a field that is wrong, the first one's facts as attributes.

    Args:
        owner: The class that was to be built, as the sentences name it.
        fields: Its fields; a field's description says what is allowed.
        error: Pydantic's error. It holds the input, secrets included, so the caller must not chain it.
        values: What was given.
    """
    found: dict[str, ConfigurationError] = {}
    for problem in error.errors(include_url=False):
        name = str(problem["loc"][0]) if problem["loc"] else ""
        if name not in found:  # a union reports once for each of its members
            found[name] = _one_problem(owner, fields, name, dict(problem), values)
    problems = list(found.values())
    first = problems[0]
    if len(problems) == 1:
        return first
    text = "; also ".join(str(each) for each in problems)
    return ConfigurationError(text, field=first.field, value=first.value, allowed=first.allowed)


def _one_problem(
    owner: str, fields: Mapping[str, FieldInfo], name: str, problem: Mapping[str, Any], values: Mapping[str, Any]
) -> ConfigurationError:
    reason = problem.get("ctx", {}).get("error")
    if isinstance(reason, ConfigurationError):  # a rule between fields, or a nested settings object
        return ConfigurationError(
            str(reason) if name else f"{owner}.{reason}", field=reason.field, value=reason.value, allowed=reason.allowed
        )
    if problem["type"] == "extra_forbidden":
        return unknown_name(f"{owner} has no setting", name, fields)
    allowed = fields[name].description or problem["msg"]
    detail = f" ({reason})" if isinstance(reason, ValueError) else ""
    value = values.get(name)
    shown = "this value (not shown)" if name in SECRET_FIELDS else show(value)
    hidden = name in SECRET_FIELDS or not _may_show(value)
    return ConfigurationError(
        f"{owner}.{name}: {shown} is not allowed{detail}; allowed: {allowed}",
        field=name,
        value=None if hidden else value,
        allowed=allowed,
    )


def unknown_name(sentence: str, name: str, known: Iterable[str]) -> ConfigurationError:
    """Return the error for a name that does not exist: the nearest ones first, then all. Its value is not shown."""
    names = list(known)
    near = nearest(name, names)
    hint = f"nearest: {', '.join(near)}; " if near else ""
    allowed = ", ".join(names)
    text = name if _may_show(name) else "(not shown)"
    return ConfigurationError(f"{sentence} {text!r}; {hint}allowed: {allowed}", field=text, allowed=allowed)


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> list[str]:
    """Return up to three of the *known* names that *name* may have meant."""
    names = {each.lower(): each for each in known}
    near = [names[each] for each in difflib.get_close_matches(name.lower(), names, n=3, cutoff=cutoff)]
    meant = SPOKEN.get(name.lower())
    return [meant, *(each for each in near if each != meant)] if meant in names else near


def show(value: object) -> str:
    """Return *value* as an error may repeat it: short, and nothing that could hide a secret."""
    if not isinstance(value, str | int | float) and value is not None:
        return f"this {type(value).__name__}"
    if not _may_show(value):
        return "this value (not shown)"
    text = repr(value)
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}..."


def _may_show(value: object) -> bool:
    if isinstance(value, str):
        return not SUSPECT.search(value)
    return value is None or isinstance(value, int | float)


def not_a_bool(value: Any) -> Any:
    """Refuse True where a number is meant: Python would take it for 1."""
    if isinstance(value, bool):
        raise ValueError("a boolean is not a number")  # noqa: TRY004 - pydantic turns ValueError only
    return value


def short_string(value: Any) -> Any:
    """Refuse text that AMQP's short string cannot carry, and an empty one."""
    if isinstance(value, str):
        size = len(_encoded(value))
        if not 1 <= size <= SHORT_STRING_MAX:
            raise ValueError(f"it has {size} bytes")
        if "\0" in value:
            raise ValueError("it holds a zero byte")
    return value


def plain_text(value: Any) -> Any:
    """Refuse text that the PLAIN mechanism cannot carry: it separates its parts by zero bytes (RFC 4616)."""
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if isinstance(text, str) and b"\0" in _encoded(text):
        raise ValueError("it holds a zero byte")
    return value


def not_empty(value: Any) -> Any:
    """Refuse empty text."""
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if text == "":
        raise ValueError("it is empty")
    return value


def pem(value: Any) -> Any:
    """Take PEM as text or as bytes, which is how a file or a secret store gives it; refuse an empty one."""
    if isinstance(value, bytes):
        try:
            value = value.decode("ascii")
        except UnicodeDecodeError:
            raise ValueError("PEM is ASCII text") from None
    return not_empty(value)


def table(value: Any) -> FrozenMapping:
    """Return *value* as a frozen mapping that an AMQP field table can carry; text is read as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError("it is not JSON") from None
    if not isinstance(value, Mapping):
        raise ValueError(f"a {type(value).__name__} is not a mapping")  # noqa: TRY004 - as above
    _check_table(value, "")
    return FrozenMapping(value)


def tcp_table(value: Any) -> FrozenMapping:
    """Return *value* as a frozen mapping of TCP option names to whole numbers."""
    options = table(value)
    for name, number in options.items():
        if name not in TCP_OPTIONS:
            raise ValueError(f"no TCP option {name!r}")
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise ValueError(f"{name} is {show(number)}")
    return options


def checked_number(name: str, value: Any, maximum: float = 10.0**9, *, whole: bool = False) -> Any:
    """Return *value*, an argument of a call, if it is a number from 0 to *maximum*.

    Raises:
        ConfigurationError: it is not.
    """
    kind = int if whole else int | float
    if isinstance(value, kind) and not isinstance(value, bool) and 0 <= value <= maximum:
        return value
    allowed = f"a whole number from 0 to {maximum}" if whole else "seconds, 0 or more"
    raise ConfigurationError(
        f"{name}: {show(value)} is not allowed; allowed: {allowed}", field=name, value=value, allowed=allowed
    )


def checked_prefetch(value: Any) -> int:
    """Return *value* if it can be a prefetch: messages that the broker sends ahead, 1 to 65535.

    Raises:
        ConfigurationError: it cannot; also 0, which would mean no limit.
    """
    if checked_number("prefetch", value, PREFETCH_MAX, whole=True) == 0:
        raise ConfigurationError(
            f"prefetch: 0 (no limit) is not allowed: the messages would pile up here; allowed: 1 to {PREFETCH_MAX}",
            field="prefetch",
            value=0,
            allowed=f"1 to {PREFETCH_MAX}",
        )
    return int(value)


def check_type(name: str, value: object, wanted: type) -> None:
    """Raise ConfigurationError unless *value*, an argument of a call, is a *wanted*."""
    if not isinstance(value, wanted):
        raise ConfigurationError(
            f"{name}: a {type(value).__name__} is not allowed; allowed: {wanted.__name__}",
            field=name,
            allowed=wanted.__name__,
        )


def checked_name(name: str, value: Any) -> str:
    """Return *value*, an argument of a call, if AMQP can carry it as a name: text of 1 to 255 bytes.

    Raises:
        ConfigurationError: it cannot.
    """
    problem = "" if isinstance(value, str) else f"a {type(value).__name__} is not text"
    try:
        short_string(value)
    except ValueError as exc:
        problem = str(exc)
    if problem:
        allowed = f"text of 1 to {SHORT_STRING_MAX} bytes"
        raise ConfigurationError(f"{name}: {problem}; allowed: {allowed}", field=name, value=value, allowed=allowed)
    return str(value)


def _check_table(value: Any, path: str) -> None:
    if isinstance(value, Mapping):
        for key, each in value.items():
            if not isinstance(key, str) or not 1 <= len(_encoded(key)) <= SHORT_STRING_MAX:
                raise ValueError(f"a name in it is not text of 1 to {SHORT_STRING_MAX} bytes")
            _check_table(each, f"{path}[{key!r}]")
    elif isinstance(value, list | tuple):
        for each in value:
            _check_table(each, path)
    elif isinstance(value, str):
        _encoded(value)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{path} is not a finite number")
    elif isinstance(value, int):
        if not -INT64 <= value < INT64:
            raise ValueError(f"{path} does not fit into 64 bits")
    elif value is not None and not isinstance(value, bytes | decimal.Decimal | datetime.datetime):
        raise ValueError(f"{path} is a {type(value).__name__}")


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ValueError("it is not valid Unicode text") from None


# The kinds of field. Numbers may be given as text, which is how a URL and the environment give them.
Count = Annotated[int, BeforeValidator(not_a_bool)]
Seconds = Annotated[float, BeforeValidator(not_a_bool), Field(allow_inf_nan=False)]
ShortText = Annotated[str, BeforeValidator(short_string)]
Text = Annotated[str, BeforeValidator(not_empty)]
FilePath = Annotated[Text, BeforeValidator(lambda value: os.fspath(value) if isinstance(value, os.PathLike) else value)]
Table = Annotated[FrozenMapping, BeforeValidator(table), PlainSerializer(lambda value: value.thaw())]
TcpTable = Annotated[FrozenMapping, BeforeValidator(tcp_table), PlainSerializer(lambda value: value.thaw())]
Secret = Annotated[SecretStr, BeforeValidator(plain_text)]
Pem = Annotated[str, BeforeValidator(pem)]
SecretPem = Annotated[SecretStr, BeforeValidator(pem)]
