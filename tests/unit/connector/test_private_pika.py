"""Every private attribute of Pika that labkit reaches for is still there, and is in the one table of them."""

import ast
import functools
import importlib.util
import re
from collections import defaultdict
from pathlib import Path

import pika
import pytest

import labkit
from tests.unit.connector.pika_private_names import NEEDED

PACKAGE = Path(labkit.__file__).parent
PRIVATE = re.compile(r"_[a-z]\w*")
# Objects of labkit's own whose attribute has the name of one of Pika's.
NOT_PIKAS = {
    ("direct/aio_link", "channel._opened"),
    ("direct/aio_link", "link._opened"),
    ("connector/abandon", "opening._impl"),
    ("wire/proxy", "self._proxy._running"),
}


def module_texts():
    texts = {path.relative_to(PACKAGE).with_suffix("").as_posix(): path.read_text() for path in PACKAGE.rglob("*.py")}
    assert len(texts) > 20
    return texts


parse = functools.cache(ast.parse)


def classes(text):
    return [each for each in ast.walk(parse(text)) if isinstance(each, ast.ClassDef)]


def private_names(cls):
    """The private attributes that a class gives itself: methods, class variables, and what it sets on ``self``."""
    names = set()
    for node in ast.walk(cls):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.add(name)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                names.add(name)
    return {name for name in names if PRIVATE.fullmatch(name)}


def inherited(bases, own, name):
    """The private attributes that the class called *name* gets from labkit's own classes, itself included."""
    return own[name].union(*(inherited(bases, own, base) for base in bases[name] if base in own))


def reached(texts, pikas):
    """Each ``module, chain`` of labkit that ends in one of Pika's private names."""
    own, bases = defaultdict(set), defaultdict(set)  # classes of one name count as one
    for each in (each for text in texts.values() for each in classes(text)):
        own[each.name] |= private_names(each)
        bases[each.name] |= {ast.unparse(base).partition("[")[0] for base in each.bases}  # Base[ItsParameter]
    for module, text in texts.items():
        waiting = [(parse(text), set())]  # a node, and the chains in it that are ours
        while waiting:
            node, ours = waiting.pop()
            if isinstance(node, ast.ClassDef):
                ours = {f"{owner}.{name}" for owner in ("self", "cls") for name in inherited(bases, own, node.name)}
            if isinstance(node, ast.Attribute) and node.attr in pikas:
                chain = ast.unparse(node)
                if chain not in ours and (module, chain) not in NOT_PIKAS:
                    yield module, chain
            waiting += [(child, ours) for child in ast.iter_child_nodes(node)]


@pytest.mark.parametrize("needed", NEEDED, ids=[each.name for each in NEEDED])
def test_the_attribute_is_there(needed):
    module, _, name = needed.where.partition(":")
    if needed.since and not hasattr(pika, "Connection"):
        pytest.skip(f"came with Pika {needed.since}")
    if needed.until and hasattr(pika, "Connection"):
        pytest.skip(f"went with Pika {needed.until}")
    text = Path(importlib.util.find_spec(module).origin).read_text()  # importing it could install Twisted's reactor
    assert [needed.name in private_names(each) for each in classes(text) if each.name == name] == [True]


@pytest.mark.parametrize("needed", NEEDED, ids=[each.name for each in NEEDED])
def test_the_table_says_who_uses_it_and_what_it_is_for(needed):
    texts = module_texts()
    users = {name for name, text in texts.items() if re.search(rf"\b{needed.name}\b", text)}
    assert set(needed.used_in) <= users
    assert len(needed.otherwise) > 10


def test_no_module_reaches_for_one_that_is_not_in_the_table():
    pikas = set()
    for path in Path(pika.__file__).parent.rglob("*.py"):
        pikas |= set().union(*map(private_names, classes(path.read_text())))
    known = {(module, each.name) for each in NEEDED for module in each.used_in}
    chains = list(reached(module_texts(), pikas))
    assert len(chains) > 5
    assert [chain for chain in chains if (chain[0], chain[1].rpartition(".")[2]) not in known] == []
    assert NOT_PIKAS.isdisjoint(known)


@pytest.mark.parametrize(
    ("line", "chains"),
    [
        ("class A(Pikas): f = lambda self: self._impl._error", {"self._impl", "self._impl._error"}),
        ("class A:\n  def f(self): self._impl = 1; self._impl._error()", {"self._impl._error"}),
        ("class A:\n  def f(self): self._impl = 1\nclass B(A): f = lambda self: self._impl", set()),
        ("class A: _impl = 1\nclass B(Pikas): f = lambda self: self._impl", {"self._impl"}),
        ("connection._impl.close()", {"connection._impl"}),
    ],
)
def test_a_name_that_labkit_uses_too_does_not_hide_that_it_is_pikas(line, chains):
    assert {chain for _, chain in reached({"module": line}, {"_impl", "_error"})} == chains
