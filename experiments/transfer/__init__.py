"""Quantum transfer learning: a pre-trained network without its last layer, frozen, and a new head on top of it.

Mari et al., "Transfer learning in hybrid classical-quantum neural networks" (arXiv 1912.08278). Which of the two is
classical (C) and which quantum (Q) makes the schemes CC, CQ, QC and QQ: the first letter is the pre-trained network (a
ResNet18, or a dressed quantum net on 8 x 8 pixels), the second the head (a dressed quantum circuit, or its classical twin).
Features of the frozen network are computed once and kept on disk.
"""

from .transfer_learning import EXPERIMENT

__all__ = ["EXPERIMENT"]
