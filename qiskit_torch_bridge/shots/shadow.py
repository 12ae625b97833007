r"""What part of a measured result's error is shot noise, and what part is the device's.

A value measured with :math:`S` shots differs from the exact one by shot noise, of a variance that the counts themselves
estimate, and by a bias that more shots do not cure: gate errors, readout errors, decoherence. Over many values

.. math:: \overline{(f_\mathrm{measured} - f_\mathrm{exact})^2} = \overline{\sigma^2} + \overline{b^2} ,

so the mean square of the bias is what is left of the mean square difference when the mean variance is taken away. Of N
numbers without any bias, what is left scatters about zero by the mean variance times sqrt(2 / N), and is cut off there: a
small bias is only worth believing if many numbers show it.

A model of the device's noise splits the bias further. Its values differ from the exact ones by the **modelled noise**; what
the measured values differ from the modelled ones by, beyond shot noise, is the **rest**: what the model does not know.

.. math:: \overline{(f_\mathrm{measured} - f_\mathrm{exact})^2} = \overline{\sigma^2} + \overline{m^2} + \overline{r^2}
    + 2\,\overline{m r} , \qquad m = f_\mathrm{modelled} - f_\mathrm{exact} .

The last term is zero where the rest has nothing to do with the modelled noise; a device with twice the modelled noise has
:math:`r = m`. Of a right model the rest is zero within its scatter: ``rest_z``, its mean square in standard deviations, is
as often positive as negative then, and seldom beyond 2. (Outputs that share shots are taken as independent, which they are
not: of few numbers take that limit as a rough one.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Deviation", "Shadow"]


@dataclass(frozen=True, eq=False)
class Deviation:
    """Measured numbers beside exact and modelled ones; arrays of one shape.

    Attributes:
        measured: What was measured.
        exact: What an exact simulation gives.
        standard_errors: The measured numbers' from shots; NaN where one shot says nothing.
        modelled: What a model of the device's noise gives; None where there is none.
    """

    measured: np.ndarray
    exact: np.ndarray
    standard_errors: np.ndarray
    modelled: np.ndarray | None = None

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

    @property
    def modelled_noise(self) -> float:
        """The root mean square of what the model says that the device's noise does; NaN without a model."""
        return math.nan if self.modelled is None else float(np.sqrt(np.mean((self.modelled - self.exact) ** 2)))

    @property
    def rest(self) -> float:
        """The root mean square of what neither shots nor the model explain; 0 where shots explain more; NaN without one."""
        excess = float(np.mean(self._excess))
        return math.sqrt(max(excess, 0.0)) if math.isfinite(excess) else math.nan

    @property
    def rest_z(self) -> float:
        """The rest's mean square in its standard deviations if there is no rest, not cut off; NaN where that is 0."""
        scatter = math.sqrt(2.0 * float(np.mean(self.standard_errors**4)) / max(self.measured.size, 1))
        return float(np.mean(self._excess)) / scatter if scatter > 0 else math.nan

    @property
    def z_scores(self) -> np.ndarray:
        """Measured minus modelled (without a model: exact) numbers in standard errors; NaN where those are 0 or NaN."""
        expected = self.exact if self.modelled is None else self.modelled
        with np.errstate(divide="ignore", invalid="ignore"):
            scores = (self.measured - expected) / self.standard_errors
        return np.where(self.standard_errors > 0, scores, np.nan)

    @property
    def _excess(self) -> np.ndarray:
        """The squared differences from the model beyond the squared standard errors."""
        if self.modelled is None:
            return np.full(self.measured.shape, np.nan)
        excess: np.ndarray = (self.measured - self.modelled) ** 2 - self.standard_errors**2
        return excess

    def summary(self) -> dict[str, float]:
        """The first three; with a model also ``modelled_noise``, ``rest`` and ``rest_z``."""
        names = ["rms", "shot_noise", "device_bias"]
        if self.modelled is not None:
            names += ["modelled_noise", "rest", "rest_z"]
        return {name: getattr(self, name) for name in names}

    def numbers(self) -> dict[str, list[Any]]:
        """All numbers as lists."""
        return {name: array.tolist() for name, array in vars(self).items() if array is not None}


@dataclass(frozen=True, eq=False)
class Shadow:
    """One evaluation beside its simulations.

    Attributes:
        values: Shape (N, M).
        gradients: Shape (N, W, M): the derivative by each of W angles by the same gradient rule; None where the
            circuits of the gradient were not part of the evaluation.
    """

    values: Deviation
    gradients: Deviation | None

    @property
    def parts(self) -> dict[str, Deviation]:
        """``"values"`` and, where they are there, ``"gradients"``."""
        parts = {"values": self.values, "gradients": self.gradients}
        return {name: part for name, part in parts.items() if part is not None}

    def summary(self) -> dict[str, dict[str, float]]:
        """:meth:`Deviation.summary` of each."""
        return {name: part.summary() for name, part in self.parts.items()}
