"""Questions about hybrid networks, answered with numbers."""

from .experiment import EXPERIMENT

__all__ = ["EXPERIMENT"]
