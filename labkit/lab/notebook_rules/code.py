"""Rules about code cells: what nbval cannot compare, what hides an error, what a learner should not copy."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator

from labkit.lab.notebook_rules.sheet import Place, Sheet, last_name

LONGEST = 20  # lines; longer code belongs in labkit, shown with inspect.getsource
WIDEST = 100  # characters; what a cell shows without sideways scrolling in a window of 1280 pixels (measured: 103)
RAW_PIKA = "raw-pika"  # the tag of a cell that opens a connection of Pika's by hand
FORBIDDEN_CALLS = {
    "clear_output": "nbval keeps every step; change a widget's value instead",
    "update_display": "nbval keeps the first display; change a widget's value instead",
    "interact": "nbval has no widget manager; make the widget and call a function",
    "interactive_output": "nbval has no widget manager; make the widget and call a function",
    "input": "a cell that waits for the keyboard hangs when nobody is there",
    "get_ipython": "a cell is plain Python, so that it can be copied into a program",
}
PIKA_CONNECTIONS = (
    "BlockingConnection", "SelectConnection", "AsyncioConnection", "TornadoConnection", "GeventConnection",
    "TwistedProtocolConnection",
)  # fmt: skip
CONNECTS = re.compile(r".*(Connection|Factory|Pool|Manager|Monitor|Publisher|Consumer|Client|Server)")  # of labkit's
_MARKER = re.compile(r"#\s*(NBVAL_|PYTEST_VALIDATE)")
_NOT_PYTHON = re.compile(r"^\s*(%|!|\?|.*\?\s*$)", re.MULTILINE)
_HISTORY = {"In", "Out", "_i", "_ii", "_iii", "_ih", "_oh", "_dh"}


def is_python(sheet: Sheet) -> Iterator[str]:
    """No magics, no shell: an unknown magic passes nbval, %%time prints times, ! depends on the system."""
    for place in sheet.code:
        if place.tree is None:
            magic = _NOT_PYTHON.search(place.source)
            yield f"{place} is not Python" + (f": {magic[0].strip()}" if magic else "")


def no_trailing_semicolon(sheet: Sheet) -> Iterator[str]:
    """A trailing ``;`` does not silence a cell under nbval. Write ``_ = expression``."""
    for place in sheet.code:
        if _ends_with_semicolon(place):
            yield f"{place} ends with ';', which nbval does not honour: write _ = ..."


def no_captured_output(sheet: Sheet) -> Iterator[str]:
    """No ``with Output():`` and no ``@output.capture()``: nbval prints that text into the cell, JupyterLab does not."""
    outputs = {"Output"}
    for place in sheet.code:
        for node in place.nodes():
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.value, ast.Call)
                and last_name(node.value.func) == "Output"
            ):
                outputs.update(filter(None, map(last_name, node.targets)))
        for node in place.nodes():
            if isinstance(node, (ast.With, ast.AsyncWith)):
                for item in node.items:
                    shown = item.context_expr
                    name = last_name(shown.func) if isinstance(shown, ast.Call) else last_name(shown)
                    if name in outputs:
                        yield f"{place}: 'with {name}' captures text; use append_stdout or print"
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                for decorator in node.decorator_list:
                    called = decorator.func if isinstance(decorator, ast.Call) else decorator
                    if last_name(called) == "capture":
                        yield f"{place}: @{ast.unparse(decorator)} captures text; use append_stdout or print"


def no_forbidden_call(sheet: Sheet) -> Iterator[str]:
    """No call that nbval cannot follow, or that waits for a person."""
    for place in sheet.code:
        for call in place.calls(*FORBIDDEN_CALLS):
            name = last_name(call.func)
            yield f"{place}: {name}(): {FORBIDDEN_CALLS[name]}"
        for node in place.nodes():
            if isinstance(node, ast.keyword) and node.arg == "display_id":
                yield f"{place}: display_id: {FORBIDDEN_CALLS['update_display']}"
            if isinstance(node, ast.Name) and node.id in _HISTORY:
                yield f"{place}: {node.id} is empty under nbval, which keeps no history"


def no_comment_marker(sheet: Sheet) -> Iterator[str]:
    """Tags, never ``# NBVAL_...``: above a cell magic such a comment breaks the cell, and nbval passes."""
    for place in sheet.code:
        if _MARKER.search(place.source):
            yield f"{place}: a marker comment; use the tag (nbval-ignore-output, raises-exception, ...)"


def short_cells(sheet: Sheet) -> Iterator[str]:
    """One idea a cell: at most :data:`LONGEST` lines."""
    for place in sheet.code:
        lines = len(place.source.strip().splitlines())
        if lines > LONGEST:
            yield f"{place} has {lines} lines; at most {LONGEST}: move code into labkit"


def no_wide_line(sheet: Sheet) -> Iterator[str]:
    """No line of code is wider than :data:`WIDEST`: nobody reads code that has to be scrolled sideways."""
    for place in sheet.code:
        for line in place.source.splitlines():
            if len(line) > WIDEST:
                yield f"{place}: a line of {len(line)} characters; at most {WIDEST}: {line.strip()[:40]!r}"


def raw_pika_is_announced(sheet: Sheet) -> Iterator[str]:
    """Only a cell with the tag ``raw-pika`` opens a connection of Pika's by hand; all others go through labkit."""
    raw = [place for place in sheet.code if _opens_pika(place)]
    for place in sheet.code:
        if place in raw and RAW_PIKA not in place.tags:
            yield f"{place} opens a connection of Pika's by hand: go through labkit, or give it the tag {RAW_PIKA!r}"
        if place not in raw and RAW_PIKA in place.tags:
            yield f"{place} has the tag {RAW_PIKA!r} and opens no connection of Pika's"


def plain_pika_first(sheet: Sheet) -> Iterator[str]:
    """Before a notebook imports the first class of labkit's that connects, a cell has opened a connection of Pika's.

    Plain Pika shows what the problem is; who has not seen that does not know what labkit is for.
    """
    for place in sheet.code:
        if _opens_pika(place):
            return
        for node in place.nodes():
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "labkit":
                for name in (alias.name for alias in node.names if CONNECTS.fullmatch(alias.name)):
                    yield f"{place} imports {name} before any cell has opened a connection of Pika's by hand"
                    return


def _opens_pika(place: Place) -> bool:
    return any(True for _ in place.calls(*PIKA_CONNECTIONS))


def public_names_only(sheet: Sheet) -> Iterator[str]:
    """Notebooks import what a learner could: no ``_underscore`` name of labkit."""
    for place in sheet.code:
        for node in place.nodes():
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "labkit":
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                for name in names:
                    if name.startswith("_"):
                        yield f"{place} imports {name}, which is private"


def _ends_with_semicolon(place: Place) -> bool:
    if place.tree is None:
        return place.source.rstrip().endswith(";")
    last = ""
    for token in tokenize.generate_tokens(io.StringIO(place.source).readline):
        if token.type in (tokenize.OP, tokenize.NAME, tokenize.NUMBER, tokenize.STRING):
            last = token.string
    return last == ";"


RULES = (
    is_python,
    no_trailing_semicolon,
    no_captured_output,
    no_forbidden_call,
    no_comment_marker,
    short_cells,
    no_wide_line,
    raw_pika_is_announced,
    plain_pika_first,
    public_names_only,
)
