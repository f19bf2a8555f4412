"""Look for what makes a training fail, before it runs."""

from .examine import examine
from .finding import ADVICE, Finding

__all__ = ["ADVICE", "Finding", "examine"]
