"""Trains a network for ``transfer``."""

from .transfer.pretraining import EXPERIMENT

__all__ = ["EXPERIMENT"]
