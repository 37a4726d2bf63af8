"""The one error of the checks."""

__all__ = ['PreflightError']


class PreflightError(Exception):
    """Input with which a run cannot work. The message names it and says what to do."""
