"""What an error means, who closed, and what to do."""

from labkit.diagnosis.explain import Explanation, explain
from labkit.diagnosis.reading import Finding, explain_text

__all__ = ["Explanation", "Finding", "explain", "explain_text"]
