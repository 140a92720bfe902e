"""Every recipe of docs/migrating.md runs on a real broker and prints what it says."""

import contextlib
import io
import re
from pathlib import Path

import pytest

import labkit

pytestmark = pytest.mark.broker

PAGE = (Path(labkit.__file__).parent.parent / "docs" / "migrating.md").read_text(encoding="utf-8")
PRELUDE = """
import asyncio, queue, threading, time
from concurrent.futures import ThreadPoolExecutor
import pika
from labkit import *
"""


def recipes():
    """Yield each recipe's name, and its blocks."""
    for part in PAGE.split("\n### ")[1:]:
        for number, block in enumerate(re.findall(r"```python\n(.*?)```", part, re.DOTALL)):
            yield pytest.param(block, id=f"{part.splitlines()[0]} {number + 1}")


def promised(block):
    """What stands behind ``# ->``, in order."""
    return re.findall(r"# -> (.*)", block)


@pytest.mark.parametrize("block", list(recipes()))
def test_a_recipe_prints_what_it_says(settings, block):
    assert promised(block), "a block that promises nothing shows nothing"
    names = {"settings": settings, "parameters": settings.to_pika()[0]}
    exec(PRELUDE, names)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, "docs/migrating.md", "exec"), names)
    assert " ".join(printed.getvalue().split()) == " ".join(" ".join(promised(block)).split())


def test_the_page_has_the_recipes_that_people_look_for():
    titles = [line.removeprefix("### ") for line in PAGE.splitlines() if line.startswith("### ")]
    assert len([each for each in titles if each[0].isdigit()]) == 7
    assert len(titles) == 18
