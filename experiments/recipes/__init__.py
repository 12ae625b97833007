"""Questions about hybrid networks, answered with numbers."""

from .survey import EXPERIMENT

__all__ = ["EXPERIMENT"]
