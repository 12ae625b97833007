r"""What part of a measured result's error is shot noise, and what part is the device's.

A value measured with :math:`S` shots differs from the exact one by shot noise, of a variance that the counts themselves
estimate, and by a bias that more shots do not cure: gate errors, readout errors, decoherence. Over many values

.. math:: \overline{(f_\mathrm{measured} - f_\mathrm{exact})^2} = \overline{\sigma^2} + \overline{b^2} ,

so the mean square of the bias is what is left of the mean square difference when the mean variance is taken away. Of N
numbers without any bias, what is left scatters about zero by the mean variance times sqrt(2 / N), and is cut off there: a
small bias is only worth believing if many numbers show it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["Deviation", "Shadow"]


@dataclass(frozen=True, eq=False)
class Deviation:
    """Measured numbers beside exact ones; arrays of one shape.

    Attributes:
        measured: What was measured.
        exact: What an exact simulation gives.
        standard_errors: The measured numbers' from shots; NaN where one shot says nothing.
    """

    measured: np.ndarray
    exact: np.ndarray
    standard_errors: np.ndarray

    @property
    def rms(self) -> float:
        """The root mean square of the differences."""
        return float(np.sqrt(np.mean((self.measured - self.exact) ** 2)))

    @property
    def shot_noise(self) -> float:
        """The root mean square that shot noise alone would lead one to expect."""
        return float(np.sqrt(np.mean(self.standard_errors**2)))

    @property
    def device_bias(self) -> float:
        """The root mean square of what shots do not explain; 0 where they explain more than there is."""
        return math.sqrt(max(self.rms**2 - self.shot_noise**2, 0.0)) if math.isfinite(self.shot_noise) else math.nan

    def summary(self) -> dict[str, float]:
        """The three."""
        return {"rms": self.rms, "shot_noise": self.shot_noise, "device_bias": self.device_bias}


@dataclass(frozen=True, eq=False)
class Shadow:
    """One evaluation beside its exact simulation.

    Attributes:
        values: Shape (N, M).
        gradients: Shape (N, W, M): the derivative by each of W angles by the same gradient rule; None where the
            circuits of the gradient were not part of the evaluation.
    """

    values: Deviation
    gradients: Deviation | None

    def summary(self) -> dict[str, dict[str, float]]:
        """:meth:`Deviation.summary` of each."""
        parts = {"values": self.values, "gradients": self.gradients}
        return {name: part.summary() for name, part in parts.items() if part is not None}
