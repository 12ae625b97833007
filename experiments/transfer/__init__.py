"""Quantum transfer learning: the experiments ``transfer`` and ``pretrain``."""
