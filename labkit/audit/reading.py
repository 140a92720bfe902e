"""Read Python files and notebooks, and answer what a rule asks of a call. Nothing that is read is run."""

import ast
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from labkit.values import refused

SKIPPED = {"__pycache__", "node_modules", "site-packages"}  # and what begins with a dot
IGNORED = re.compile(r"#.*\blabkit:\s*ignore\[([\w\-, ]+)\]")
MAGIC = re.compile(r"\s*[%!?]|\s*[\w.]+\?+\s*$")
UNKNOWN = object()  # a value that only running would tell

# The names of positional arguments, where rules ask for them.
SIGNATURES = {
    "basic_consume": ("queue", "on_message_callback", "auto_ack", "exclusive", "consumer_tag", "arguments"),
    "basic_get": ("queue", "auto_ack"),
    "basic_publish": ("exchange", "routing_key", "body", "properties", "mandatory"),
    "basic_qos": ("prefetch_size", "prefetch_count", "global_qos"),
    "basic_nack": ("delivery_tag", "multiple", "requeue"),
    "queue_declare": ("queue", "passive", "durable", "exclusive", "auto_delete", "arguments"),
    "PlainCredentials": ("username", "password"),
    "URLParameters": ("url",),
    "from_url": ("url",),
    "ConnectionParameters": ("host", "port", "virtual_host", "credentials"),
    "Queue": ("name",),
    "Thread": ("group", "target", "name", "args", "kwargs"),
}


@dataclass(frozen=True)
class Call:
    """A call in the source.

    Attributes:
        node: Where it stands.
        name: What is called, without what comes before the last dot.
        owner: What comes before it, as it is written; empty for a bare name.
        given: The arguments, by name where that is known.
        is_whole: Whether ``*`` and ``**`` hide none of them.
    """

    node: ast.Call
    name: str
    owner: str
    given: dict[str, ast.expr]
    is_whole: bool


@dataclass
class Source:
    """One file.

    Attributes:
        path: As it is reported.
        tree: Its code; a notebook's cells one after another, each line at the number that *places* explains.
        lines: Its lines.
        places: For a line of a notebook, the cell and the line in it; empty for a file.
    """

    path: str
    tree: ast.Module
    lines: list[str]
    places: list[tuple[int, int]] = field(default_factory=list)

    @cached_property
    def parents(self) -> dict[ast.AST, ast.AST]:
        """What each node stands in."""
        return {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}

    @cached_property
    def calls(self) -> list[Call]:
        """All calls, in the order of the text."""
        found = [_call(each) for each in ast.walk(self.tree) if isinstance(each, ast.Call)]
        return sorted(found, key=lambda each: (each.node.lineno, each.node.col_offset))

    def named(self, *names: str) -> Iterator[Call]:
        """Yield the calls of these names."""
        return (each for each in self.calls if each.name in names)

    def above(self, node: ast.AST) -> Iterator[ast.AST]:
        """Yield what *node* stands in, the nearest first."""
        while (up := self.parents.get(node)) is not None:
            yield up
            node = up

    def function_of(self, node: ast.AST) -> ast.AST:
        """Return the function that *node* stands in; the module outside of all."""
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
        return next((each for each in self.above(node) if isinstance(each, kinds)), self.tree)

    @cached_property
    def constants(self) -> dict[str, Any]:
        """What names of the module mean that are assigned once."""
        found: dict[str, Any] = {}
        for node in ast.walk(self.tree):
            if not isinstance(node, ast.Assign):
                continue
            for each in node.targets:
                if isinstance(each, ast.Name):
                    found[each.id] = UNKNOWN if each.id in found else _literal(node.value)
        return found

    def value(self, node: ast.expr | None, default: Any = None) -> Any:
        """Return what *node* means: *default* where there is none, UNKNOWN where the text does not say."""
        if node is None:
            return default
        if isinstance(node, ast.Name):
            return self.constants.get(node.id, UNKNOWN)
        return _literal(node)

    def place(self, node: ast.AST) -> tuple[int | None, int]:
        """Return the cell and the line of *node*."""
        line = int(getattr(node, "lineno", 1))
        return self.places[line - 1] if self.places else (None, line)

    def is_ignored(self, node: ast.AST, rule: str) -> bool:
        """Whether a comment ``labkit: ignore[rule]`` stands on the first or the last line of *node*, or just above."""
        first, last = getattr(node, "lineno", 1), getattr(node, "end_lineno", None) or 1
        above = first - 1 if first > 1 and self.lines[first - 2].lstrip().startswith("#") else first
        for number in {above, first, last}:
            comment = IGNORED.search(self.lines[number - 1]) if number <= len(self.lines) else None
            if comment and rule in {each.strip() for each in comment[1].split(",")}:
                return True
        return False


def sources(paths: Iterable[Path]) -> Iterator[Source | tuple[str, str]]:
    """Read each file, and each ``.py`` and ``.ipynb`` in each folder; yield its name and what is wrong if it cannot be.

    Raises:
        ConfigurationError: a path is not there, or no such file.
    """
    for path in paths:
        if path.is_dir():
            files = [each for each in sorted(path.rglob("*")) if each.suffix in (".py", ".ipynb") and each.is_file()]
            files = [each for each in files if not _is_skipped(each.relative_to(path))]
        elif path.is_file() and path.suffix in (".py", ".ipynb"):
            files = [path]
        else:
            raise refused("path", str(path), "a folder, a .py file or a .ipynb file that is there")
        for each in files:
            try:
                yield read(each)
            except (SyntaxError, ValueError, KeyError, TypeError, OSError, RecursionError) as exc:
                yield each.as_posix(), f"{type(exc).__name__}: {exc}".splitlines()[0]


def read(path: Path) -> Source:
    """Read a file.

    Raises:
        SyntaxError, ValueError, KeyError, TypeError, OSError, RecursionError: it is no such file.
    """
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix != ".ipynb":
        return source_of(text, path.as_posix())
    lines: list[str] = []
    places: list[tuple[int, int]] = []
    for number, cell in enumerate(json.loads(text)["cells"]):
        code = "".join(cell["source"]).splitlines()
        if cell["cell_type"] != "code" or (code and code[0].startswith("%%")):
            continue
        for at, each in enumerate(code):
            lines.append(re.sub(r"\S.*", "pass", each) if MAGIC.match(each) else each)
            places.append((number, at + 1))
    source = source_of("\n".join(lines), path.as_posix())
    source.places = places
    return source


def source_of(text: str, path: str = "source") -> Source:
    """Return *text* as a source.

    Raises:
        SyntaxError, ValueError, RecursionError: it is no Python.
    """
    flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    tree: ast.Module = compile(text, path, "exec", flags=flags, dont_inherit=True)
    return Source(path, tree, text.splitlines())


def _call(node: ast.Call) -> Call:
    name, owner = "", ""
    if isinstance(node.func, ast.Attribute):
        name, owner = node.func.attr, ast.unparse(node.func.value)
    elif isinstance(node.func, ast.Name):
        name = node.func.id
    given = {each.arg: each.value for each in node.keywords if each.arg is not None}
    plain = [each for each in node.args if not isinstance(each, ast.Starred)]
    for at, each in enumerate(plain):
        known = SIGNATURES.get(name, ())
        given[known[at] if at < len(known) else str(at)] = each
    return Call(
        node, name, owner, given, len(plain) == len(node.args) and len(given) == len(plain) + len(node.keywords)
    )


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return UNKNOWN


def _is_skipped(inside: Path) -> bool:
    return any(each in SKIPPED or each.startswith(".") for each in inside.parts)
