"""What a failure looks like to the caller: one observation, the same on every machine."""

import re
from dataclasses import asdict, dataclass

from labkit.diagnosis import explain
from labkit.verdicts import root_cause

NOTHING = "nothing is raised"
_NODE = re.compile(r"\b(?:labkit-[0-9a-f]+|rabbit)@[\w.-]+")  # a node's name: drawn, or a container's


@dataclass(frozen=True, slots=True)
class Seen:
    """What a trigger led to on one broker. All but the first two are what ``lab.explain`` says.

    Attributes:
        raised: The class of the exception that the caller gets; ``nothing is raised`` if none.
        inside: The class of the one that it was made from; empty if it is the same.
        said: The broker's own words.
        diagnosis: The name of what happened.
        what: What happened.
        closed_by: Who closed.
        advice: What to do.
        retry: What a retry would meet.
        notebook: The lesson's number.
    """

    raised: str = NOTHING
    inside: str = ""
    said: str = ""
    diagnosis: str = ""
    what: str = ""
    closed_by: str = ""
    advice: str = ""
    retry: str = ""
    notebook: str = ""

    @classmethod
    def of(cls, error: BaseException) -> "Seen":
        """What *error* says."""
        told, inner = explain(error), root_cause(error)
        return cls(
            raised=type(error).__name__,
            inside=type(inner).__name__ if inner is not error else "",
            said=_NODE.sub("…", told.said),
            diagnosis=told.diagnosis,
            what=told.what,
            closed_by=told.closed_by,
            advice=told.advice,
            retry=told.kind.value,
            notebook=told.notebook,
        )

    def as_dict(self) -> dict[str, str]:
        """What is known, for JSON."""
        return {name: value for name, value in asdict(self).items() if value}
