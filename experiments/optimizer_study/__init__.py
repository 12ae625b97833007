"""Optimizers beside each other, at equal executions and at equal seconds of a quantum processor."""
