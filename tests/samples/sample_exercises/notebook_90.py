"""Exercises of the sample notebook 90."""

from labkit.lab.checks import Exercise, run
from labkit.trials import NotYet


def _doubles(answer: object) -> str:
    if run(answer, 4) != 8:
        raise NotYet("what is twice four?")
    return "twice four is eight"


EXERCISES = (
    Exercise("90.1", _doubles, hints=("Read the name.", "Use *.", "return 2 * number"), seconds=2.0),
    Exercise("90.2", lambda answer: str(answer["key"]), seconds=0.2),
)
