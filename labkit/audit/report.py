"""What the audit found, as a table for people, as JSON, and as SARIF for what shows findings beside the code."""

import json
from collections.abc import Sequence
from typing import Any

from labkit.audit.rules import RULES, Finding
from labkit.version import __version__

SARIF = "https://json.schemastore.org/sarif-2.1.0.json"


def as_table(findings: Sequence[Finding]) -> str:
    """Return a line for each finding, and below each rule's name why it matters and what to do."""
    if not findings:
        return "nothing found"
    lines = [str(each) for each in findings]
    for name in dict.fromkeys(each.rule for each in findings):
        if name in RULES:
            rule = RULES[name]
            lines += ["", name, f"  why: {rule.why}", f"  fix: {rule.fix}", f"  see: {rule.reference}"]
    places = "1 place" if len(findings) == 1 else f"{len(findings)} places"
    return "\n".join([*lines, "", f"found: {places}"])


def as_json(findings: Sequence[Finding]) -> str:
    """Return the findings as a JSON list; each has the rule's texts beside its place."""
    listed = []
    for each in findings:
        entry: dict[str, Any] = {
            "rule": each.rule, "path": each.path, "cell": each.cell, "line": each.line, "detail": each.detail,
        }  # fmt: skip
        if each.rule in RULES:
            entry |= {name: getattr(RULES[each.rule], name) for name in ("why", "fix", "reference")}
        listed.append(entry)
    return json.dumps(listed, indent=2)


def as_sarif(findings: Sequence[Finding]) -> str:
    """Return the findings as a SARIF 2.1.0 log."""
    names = list(dict.fromkeys(each.rule for each in findings))
    rules = [_described(name) for name in names]
    results = [
        {
            "ruleId": each.rule,
            "ruleIndex": names.index(each.rule),
            "level": "warning",
            "message": {"text": each.detail},
            "locations": [_location(each)],
        }
        for each in findings
    ]
    driver = {"name": "labkit audit", "version": __version__, "rules": rules}
    log = {"$schema": SARIF, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}
    return json.dumps(log, indent=2)


def _described(name: str) -> dict[str, Any]:
    if name not in RULES:
        return {"id": name, "shortDescription": {"text": "the file cannot be read"}}
    rule = RULES[name]
    return {
        "id": name,
        "shortDescription": {"text": rule.why},
        "help": {"text": rule.fix},
        "helpUri": rule.reference,
    }


def _location(finding: Finding) -> dict[str, Any]:
    physical: dict[str, Any] = {"artifactLocation": {"uri": finding.path}}
    if finding.line:
        physical["region"] = {"startLine": finding.line}
    location: dict[str, Any] = {"physicalLocation": physical}
    if finding.cell is not None:
        location["logicalLocations"] = [{"name": f"cell {finding.cell}"}]
    return location
