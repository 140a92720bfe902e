"""Every private attribute of Pika that labkit reaches for is still there, and is in the one table of them."""

import importlib
import inspect
import re
from pathlib import Path

import pika
import pytest

import labkit
from labkit.private_pika import NEEDED

PACKAGE = Path(labkit.__file__).parent
REACHED = re.compile(r"(?<!self)(?<!cls)\.(_[a-z]\w*)")
DEFINED = re.compile(r"(?:self\.|def |^    )(_[a-z]\w*)\b", re.MULTILINE)


def module_texts():
    texts = {path.stem: path.read_text() for path in PACKAGE.glob("*.py")}
    assert len(texts) > 20
    return texts


@pytest.mark.parametrize("needed", NEEDED, ids=[each.name for each in NEEDED])
def test_the_attribute_is_there(needed):
    module, _, name = needed.where.partition(":")
    if needed.since and not hasattr(pika, "Connection"):
        pytest.skip(f"came with Pika {needed.since}")
    cls = getattr(importlib.import_module(module), name)
    assert hasattr(cls, needed.name) or re.search(rf"self\.{needed.name}\b", inspect.getsource(cls))


@pytest.mark.parametrize("needed", NEEDED, ids=[each.name for each in NEEDED])
def test_the_table_says_who_uses_it_and_what_it_is_for(needed):
    texts = module_texts()
    users = {name for name, text in texts.items() if re.search(rf"\b{needed.name}\b", text)}
    assert set(needed.used_in) <= users
    assert len(needed.otherwise) > 10


def test_no_module_reaches_for_one_that_is_not_in_the_table():
    texts = module_texts()
    pikas = set()
    for path in Path(pika.__file__).parent.rglob("*.py"):
        pikas |= set(DEFINED.findall(path.read_text()))
    ours = set().union(*(DEFINED.findall(text) for text in texts.values()))
    known = {(each.name, module) for each in NEEDED for module in each.used_in}
    reached = {
        (name, module) for module, text in texts.items() for name in REACHED.findall(text) if name in pikas - ours
    }
    assert len(reached) > 5
    assert reached - known == set()
