"""The ground that settings stand on: frozen, checked, and clear about what is wrong.

The only module that reads pydantic's errors: it turns them into sentences with the field, the value unless
secret, and what is allowed. Nothing here echoes what may hold a secret. What AMQP can carry is ``labkit.values``.
"""

import difflib
import inspect
import json
import os
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from labkit.content.properties import PIKA_ENCODES_FLOATS
from labkit.errors import ConfigurationError
from labkit.printable import a_type
from labkit.values import (
    INT32,
    FrozenMapping,
    check_type,
    checked_name,
    checked_number,
    checked_prefetch,
    encoded,
    may_show,
    short_string,
    show,
    table,
)

__all__ = ["check_type", "checked_name", "checked_number", "checked_prefetch", "show"]  # they were here once

SECONDS_MAX = 10.0**9  # some thirty years, as for the arguments of calls
SECRET_FIELDS = frozenset({"password", "key_password", "cert_data", "credentials"})
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


class Settings(BaseSettings):
    """What the settings classes share: frozen, complete errors, and no look at the environment."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, arbitrary_types_allowed=True, validate_default=True
    )

    def __init__(self, **values: Any) -> None:
        for name in values:
            if name.startswith("_"):  # pydantic-settings' own: they would have it read files, or the command line
                raise unknown_name(f"{type(self).__name__} has no setting", name, type(self).model_fields)
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

    def __setattr__(self, name: str, value: Any) -> None:
        raise self._frozen(name, "assigned")

    def __delattr__(self, name: str) -> None:
        raise self._frozen(name, "deleted")

    def _frozen(self, name: str, verb: str) -> ConfigurationError:
        allowed = "settings.replace(...), which returns a copy with changes"
        text = f"{type(self).__name__} is frozen: {name} cannot be {verb}; allowed: {allowed}"
        return ConfigurationError(text, field=name, allowed=allowed)

    # Pydantic's own ways in: without a look at the values, or with an error that may repeat them.

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy; with *update*, what :meth:`replace` returns."""
        return self.replace(**update) if update else super().model_copy(deep=deep)

    def copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False, **_: Any) -> Self:
        """Return what :meth:`model_copy` does."""
        return self.model_copy(update=update, deep=deep)

    @classmethod
    def model_construct(cls, _fields_set: set[str] | None = None, **values: Any) -> Self:
        """Return what the constructor does."""
        return cls(**values)

    @classmethod
    def model_validate(cls, obj: Any, **_: Any) -> Self:
        """Return settings as they are, or those that a mapping describes."""
        if isinstance(obj, cls):
            return obj
        if not isinstance(obj, Mapping):
            raise ConfigurationError(f"{cls.__name__}: {a_type(obj)} is not a mapping; allowed: a mapping")
        return cls(**{str(name): value for name, value in obj.items()})

    @classmethod
    def model_validate_json(cls, json_data: Any, **_: Any) -> Self:
        """Return the settings that a JSON object describes."""
        try:
            obj = json.loads(json_data)
        except (TypeError, ValueError, RecursionError):
            obj = None
        if not isinstance(obj, dict):
            raise ConfigurationError(f"{cls.__name__}: it is not a JSON object; allowed: a JSON object")
        return cls.model_validate(obj)

    @classmethod
    def model_validate_strings(cls, obj: Any, **_: Any) -> Self:
        """Return what :meth:`model_validate` does: every setting may be given as text."""
        return cls.model_validate(obj)

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
    hidden = name in SECRET_FIELDS or not may_show(value)
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
    text = name if may_show(name) else "(not shown)"
    return ConfigurationError(f"{sentence} {text!r}; {hint}allowed: {allowed}", field=text, allowed=allowed)


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> list[str]:
    """Return up to three of the *known* names that *name* may have meant."""
    names = {each.lower(): each for each in known}
    near = [names[each] for each in difflib.get_close_matches(name.lower(), names, n=3, cutoff=cutoff)]
    meant = SPOKEN.get(name.lower())
    return [meant, *(each for each in near if each != meant)] if meant in names else near


def not_a_bool(value: Any) -> Any:
    """Refuse True where a number is meant: Python would take it for 1."""
    if isinstance(value, bool):
        raise ValueError("a boolean is not a number")  # noqa: TRY004 - pydantic turns ValueError only
    return value


def not_longer_than_a_wait(seconds: float) -> float:
    """Refuse seconds that no lock, socket or poll can wait for."""
    if seconds > SECONDS_MAX:
        raise ValueError(f"above {SECONDS_MAX:.0f}")
    return seconds


def not_bytes(value: Any) -> Any:
    """Refuse bytes where text is meant: pydantic would decode them."""
    if isinstance(value, bytes | bytearray | memoryview):
        raise ValueError(f"{a_type(value)} is not text")  # noqa: TRY004 - as above
    return value


def name(value: Any) -> Any:
    """Refuse what AMQP's short string cannot carry, and an empty one."""
    return short_string(not_bytes(value))


def plain_text(value: Any) -> Any:
    """Refuse text that the PLAIN mechanism cannot carry: it separates its parts by zero bytes (RFC 4616)."""
    text = value.get_secret_value() if isinstance(value, SecretStr) else not_bytes(value)
    if isinstance(text, str) and b"\0" in encoded(text):
        raise ValueError("it holds a zero byte")
    return value


def not_empty(value: Any) -> Any:
    """Refuse empty text."""
    text = value.get_secret_value() if isinstance(value, SecretStr) else not_bytes(value)
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


def written_table(value: Any) -> FrozenMapping:
    """Return *value* as a frozen mapping that an AMQP field table can carry; text is read as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError("it is not JSON") from None
    return table(value, floats=PIKA_ENCODES_FLOATS)


def tcp_table(value: Any) -> FrozenMapping:
    """Return *value* as a frozen mapping of TCP option names to whole numbers."""
    options = written_table(value)
    for name, number in options.items():
        if name not in TCP_OPTIONS:
            raise ValueError(f"no TCP option {name!r}")
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < INT32:
            raise ValueError(f"{name} is {show(number)}")
    return options


# The kinds of field. Numbers may be given as text, which is how a URL and the environment give them.
Count = Annotated[int, BeforeValidator(not_a_bool)]
Seconds = Annotated[
    float, BeforeValidator(not_a_bool), Field(allow_inf_nan=False), AfterValidator(not_longer_than_a_wait)
]
ShortText = Annotated[str, BeforeValidator(name)]
Text = Annotated[str, BeforeValidator(not_empty)]
FilePath = Annotated[Text, BeforeValidator(lambda value: os.fspath(value) if isinstance(value, os.PathLike) else value)]
Table = Annotated[FrozenMapping, BeforeValidator(written_table), PlainSerializer(lambda value: value.thaw())]
TcpTable = Annotated[FrozenMapping, BeforeValidator(tcp_table), PlainSerializer(lambda value: value.thaw())]
Secret = Annotated[SecretStr, BeforeValidator(plain_text)]
Pem = Annotated[str, BeforeValidator(pem)]
SecretPem = Annotated[SecretStr, BeforeValidator(pem)]
