"""How many error texts of others are diagnosed rightly: error_texts.toml has them, and what each means."""

import tomllib
from collections import Counter
from pathlib import Path

from labkit.diagnosis import explain_text
from labkit.diagnosis.explain import BY_NAME
from labkit.diagnosis.reading import NOT_KNOWN

HERE = Path(__file__).parent
TEXTS = tomllib.loads((HERE / "error_texts.toml").read_text(encoding="utf-8"))["texts"]
MEASURED = (HERE.parents[2] / "docs" / "measured.md").read_text(encoding="utf-8")


def verdict(sample: dict[str, object]) -> str:
    found = explain_text(str(sample["text"]))
    said = found[0].explanation.diagnosis if found else NOT_KNOWN
    if said == sample["expected"]:
        return "right"
    also = sample.get("also", [])
    assert isinstance(also, list)
    return "less" if said in (NOT_KNOWN, *also) else "wrong"


def test_of_sixty_texts_most_are_diagnosed_and_none_is_taken_for_something_else():
    assert len(TEXTS) == 60
    assert {name for each in TEXTS for name in (each["expected"], *each.get("also", []))} <= {*BY_NAME, NOT_KNOWN}
    counted = Counter(verdict(each) for each in TEXTS)
    assert counted["wrong"] == 0
    assert counted["right"] >= 54
    assert f"| {counted['right']} | {counted['less']} | {counted['wrong']} |" in MEASURED
