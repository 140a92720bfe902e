"""Good practice as rules that a program can check: in source code, in settings, on a running broker.

Nothing that is read is run, and a broker is only asked. A comment ``# labkit: ignore[name]``, on the
line or just above, silences a rule there. Rules about newer versions can be asked for alone: that is the rehearsal of
an upgrade.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.audit import code, configured, upgrades
from labkit.audit.reading import Source, sources
from labkit.audit.report import as_json, as_sarif, as_table
from labkit.audit.rules import RULES, TARGETS, Finding, Rule, chosen
from labkit.extras import needs
from labkit.settings.settings import BrokerSettings, checked_settings
from labkit.values import check_type, checked_items, checked_path

if TYPE_CHECKING:
    from labkit.brokers import Broker

UNREADABLE = "unreadable"  # the name of a finding that stands for a file nobody could read


def audit_code(paths: str | Path | Iterable[str | Path], targets: Iterable[str] = ()) -> list[Finding]:
    """Return what the rules for source code find in these files and folders, in the order of the text.

    Args:
        paths: A file that ends in ``.py`` or ``.ipynb``, a folder with such, or several of them.
        targets: Of TARGETS: only what matters when one upgrades to these; none: all rules.

    Raises:
        ConfigurationError: a path is not there; a target is unknown.
    """
    rules = chosen("code", targets)
    found: list[Finding] = []
    for source in sources(_several(paths)):
        if isinstance(source, Source):
            found += _in_source(source, rules)
        else:
            found.append(Finding(source[0], None, 0, UNREADABLE, source[1]))
    return found


def audit_settings(settings: BrokerSettings, targets: Iterable[str] = ()) -> list[Finding]:
    """Return what the rules for settings find; a certificate file is read, nothing is connected to.

    Raises:
        ConfigurationError: these are no settings; a certificate cannot be read; a target is unknown.
    """
    checked_settings(settings)
    return [
        Finding("settings", None, 0, rule.name, f"{place}: {detail}")
        for rule in chosen("settings", targets)
        for place, detail in rule.check(settings)
    ]


def audit_broker(broker: "Broker", targets: Iterable[str] = ()) -> list[Finding]:
    """Return what the rules for a broker find; it is asked by its management API, and nothing there is changed.

    Raises:
        BrokerError: the management API gives no answer within 10 s a request, or refuses.
        ConnectError: its TLS listener refuses a handshake.
        ConfigurationError: this is no broker; a target is unknown.
        MissingExtra: the extra "brokers" is not installed.
    """
    with needs("brokers"):
        from labkit.audit.running import look
        from labkit.brokers import Broker as Asked

    check_type("broker", broker, Asked)
    rules = chosen("broker", targets)
    seen = look(broker)
    return sorted(
        Finding("broker", None, 0, rule.name, f"{place}: {detail}")
        for rule in rules
        for place, detail in rule.check(seen)
    )


def _several(paths: object) -> list[Path]:
    several = [paths] if isinstance(paths, str | os.PathLike) else checked_items("paths", paths, "paths")
    return [checked_path("paths", each) for each in several]


def _in_source(source: Source, rules: list[Rule]) -> list[Finding]:
    found = set()
    for rule in rules:
        for node, detail in rule.check(source):
            if not source.is_ignored(node, rule.name):
                cell, line = source.place(node)
                found.add((cell or 0, line, Finding(source.path, cell, line, rule.name, detail)))
    return [each for _, _, each in sorted(found, key=lambda each: (each[0], each[1], each[2].rule))]


__all__ = [
    "RULES",
    "TARGETS",
    "Finding",
    "Rule",
    "as_json",
    "as_sarif",
    "as_table",
    "audit_broker",
    "audit_code",
    "audit_settings",
    "code",
    "configured",
    "upgrades",
]
