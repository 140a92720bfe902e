"""The answer of a trial, or of an exercise's check, that is not met yet."""


class NotYet(Exception):  # noqa: N818 - what the learner reads is "NOT YET"; it is an answer, not an error
    """The answer is not right yet; the text is the hint that says where to look."""
