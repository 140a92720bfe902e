"""The atlas's data: what each trigger led to on each version of RabbitMQ, as recorded. No broker is asked."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from labkit.lab.atlas.seen import Seen

RECORD = Path(__file__).with_name("atlas.json")


@dataclass(frozen=True, slots=True)
class Row:
    """One failure.

    Attributes:
        name: Unique.
        group: Where it stands.
        when: What one does, or what happens.
        seen: What came of it, and the versions of RabbitMQ where it did; the newest first.
    """

    name: str
    group: str
    when: str
    seen: tuple[tuple[tuple[str, ...], Seen], ...]

    def on(self, version: str) -> Seen | None:
        """What was seen on that version, such as "4.3"; None if it was not run there."""
        return next((seen for versions, seen in self.seen if version in versions), None)


def recorded() -> list[Row]:
    """The rows that come with labkit."""
    return [
        Row(
            name=each["name"],
            group=each["group"],
            when=each["when"],
            seen=tuple((tuple(one.pop("versions")), Seen(**one)) for one in each["seen"]),
        )
        for each in json.loads(RECORD.read_text(encoding="utf-8"))
    ]


def merged(rows: Iterable[Row], version: str, run: Mapping[str, tuple[str, str, Seen]]) -> list[Row]:
    """The rows of *run* (name: group, what happens, what was seen), with what *rows* say of other versions."""
    old = {row.name: row for row in rows}
    made = []
    for name, (group, when, seen) in run.items():
        by_version = {version: seen}
        if name in old:
            by_version |= {each: one for versions, one in old[name].seen for each in versions if each != version}
        grouped: dict[Seen, list[str]] = {}
        for each in sorted(by_version, key=_number, reverse=True):
            grouped.setdefault(by_version[each], []).append(each)
        made.append(Row(name, group, when, tuple((tuple(versions), one) for one, versions in grouped.items())))
    return made


def as_json(rows: Iterable[Row]) -> str:
    """The rows as they are kept."""
    told = [
        {
            "name": row.name,
            "group": row.group,
            "when": row.when,
            "seen": [{"versions": versions, **seen.as_dict()} for versions, seen in row.seen],
        }
        for row in rows
    ]
    return json.dumps(told, indent=1) + "\n"


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(each) for each in version.split("."))
