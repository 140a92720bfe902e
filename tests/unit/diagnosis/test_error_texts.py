"""How many error texts of others are diagnosed rightly: two files have them, and what each means."""

import tomllib
from collections import Counter
from pathlib import Path

import pytest

from labkit.diagnosis import explain_text
from labkit.diagnosis.explain import BY_NAME
from labkit.diagnosis.reading import NOT_KNOWN

HERE = Path(__file__).parent
MEASURED = (HERE.parents[2] / "docs" / "measured.md").read_text(encoding="utf-8")


def verdict(sample: dict[str, object]) -> str:
    found = explain_text(str(sample["text"]))
    said = found[0].explanation.diagnosis if found else NOT_KNOWN
    if said == sample["expected"]:
        return "right"
    also = sample.get("also", [])
    assert isinstance(also, list)
    return "less" if said in (NOT_KNOWN, *also) else "wrong"


@pytest.mark.parametrize(("file", "count", "right"), [("error_texts", 60, 54), ("later_error_texts", 20, 12)])
def test_most_texts_are_diagnosed_and_none_is_taken_for_something_else(file, count, right):
    texts = tomllib.loads((HERE / f"{file}.toml").read_text(encoding="utf-8"))["texts"]
    assert len(texts) == count
    assert {name for each in texts for name in (each["expected"], *each.get("also", []))} <= {*BY_NAME, NOT_KNOWN}
    counted = Counter(verdict(each) for each in texts)
    assert counted["wrong"] == 0
    assert counted["right"] >= right
    assert f"| {counted['right']} | {counted['less']} | {counted['wrong']} |" in MEASURED
