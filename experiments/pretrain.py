"""Trains a network for ``transfer``, on classes that are not the target's."""

from .transfer.pretraining import EXPERIMENT

__all__ = ["EXPERIMENT"]
