"""What an error means, who closed, and what to do."""

from labkit.diagnosis.explain import Explanation, explain

__all__ = ["Explanation", "explain"]
