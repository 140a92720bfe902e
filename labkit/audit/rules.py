"""What a rule of the audit is, and what it found. No I/O."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from labkit.values import checked_items, refused

About = Literal["code", "settings", "broker"]
Check = Callable[
    [Any], Iterable[tuple[Any, str]]
]  # takes what the rule is about; yields a place in it, and what is there


@dataclass(frozen=True)
class Rule:
    """One piece of good practice that a program can look for.

    Attributes:
        name: Short and lasting: it stands in reports and in comments that silence it.
        about: What it looks at.
        why: What goes wrong otherwise.
        fix: What to do.
        reference: Where it is written down.
        since: The product and the version with which it matters, such as ``("rabbitmq", (4, 3))``; None: always.
        check: Finds its places.
    """

    name: str
    about: About
    why: str
    fix: str
    reference: str
    since: tuple[str, tuple[int, ...]] | None
    check: Check


@dataclass(frozen=True, order=True)
class Finding:
    """A place where a rule is not kept.

    Attributes:
        path: The file, or what else was looked at ("settings", "broker").
        cell: Of a notebook, counted over all its cells from 0; None elsewhere.
        line: In the file or cell, from 1; 0 where there are no lines.
        rule: The rule's name.
        detail: What is there.
    """

    path: str
    cell: int | None
    line: int
    rule: str
    detail: str

    def __str__(self) -> str:
        cell = "" if self.cell is None else f" cell {self.cell}"
        line = f":{self.line}" if self.line else ""
        return f"{self.path}{cell}{line}: {self.rule}: {self.detail}"


RULES: dict[str, Rule] = {}
DOCS = "https://www.rabbitmq.com/docs/"
TARGETS = ("pika-1.5", "rabbitmq-4.0", "rabbitmq-4.1", "rabbitmq-4.3")


def rule(
    name: str, about: About, *, fix: str, why: str = "", reference: str = "", since: str | None = None, like: str = ""
) -> Callable[[Check], Check]:
    """Have the function below be the check of a rule; the arguments are as in :class:`Rule`, *since* as in TARGETS.

    *like* is the name of another rule, whose *why* and *reference* hold for this one too.
    """
    if like:
        why, reference = RULES[like].why, RULES[like].reference

    def add(check: Check) -> Check:
        RULES[name] = Rule(name, about, why, fix, reference, None if since is None else _version(since), check)
        return check

    return add


def chosen(about: About, targets: Iterable[str] = ()) -> list[Rule]:
    """Return the rules about that; with *targets*, only those that matter from one of these versions on.

    Raises:
        ConfigurationError: a target is none of TARGETS.
    """
    wanted: dict[str, tuple[int, ...]] = {}
    for each in checked_items("targets", targets, "targets"):
        if each not in TARGETS:
            raise refused("targets", each, ", ".join(TARGETS))
        product, version = _version(each)
        wanted[product] = max(version, wanted.get(product, ()))
    return [
        each
        for each in RULES.values()
        if each.about == about
        and (not wanted or (each.since is not None and each.since[1] <= wanted.get(each.since[0], ())))
    ]


def _version(target: str) -> tuple[str, tuple[int, ...]]:
    product, _, version = target.partition("-")
    return product, tuple(int(each) for each in version.split("."))
