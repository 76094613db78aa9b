"""Electron scattering factors of neutral atoms, Z = 1 to 103, as published."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from typing import Literal

import numpy as np
from scipy import constants

Parametrization = Literal["lobato", "kirkland"]

#: h^2 / (2 pi m e) in V angstrom^2: from a scattering factor to the transform of a potential.
SCATTERING_TO_VOLT = constants.h**2 / (2 * np.pi * constants.electron_mass * constants.e) * 1e20


@lru_cache
def table(parametrization: Parametrization) -> np.ndarray:
    """Published parameters, one row for each Z from 1 to 103.

    Returns
    -------
    np.ndarray
        ``a1..a5 b1..b5`` (Lobato and Van Dyck 2014) or ``a1 b1 .. a3 b3 c1 d1 .. c3 d3`` (Kirkland 2010,
        Appendix C).
    """
    text = resources.files("petomo.physics").joinpath(f"{parametrization}.txt").read_text("ascii")
    rows = np.loadtxt(text.splitlines(), comments="#")
    rows.flags.writeable = False
    return rows[:, 1:]


def scattering_factor(
    atomic_number: int, q2: np.ndarray, parametrization: Parametrization = "lobato"
) -> np.ndarray:
    """Elastic electron scattering factor f_e(q) in angstrom (first Born approximation, rest mass).

    Lobato and Van Dyck, Acta Cryst. A 70 (2014) 636:
    ``f = sum_i a_i (2 + b_i q^2) / (1 + b_i q^2)^2``. Kirkland 2010, Appendix C:
    ``f = sum_i a_i / (q^2 + b_i) + sum_i c_i exp(-d_i q^2)``.

    Parameters
    ----------
    atomic_number : int
        1 to 103.
    q2 : np.ndarray
        Squared frequency in 1/angstrom^2, any shape.

    Raises
    ------
    ValueError
        If the tables do not have the element.
    """
    rows = table(parametrization)
    if not 1 <= atomic_number <= len(rows):
        raise ValueError(f"no scattering factor for Z = {atomic_number}; the tables hold 1 to {len(rows)}")
    p, q2 = rows[atomic_number - 1], np.asarray(q2, dtype=np.float64)[..., None]
    if parametrization == "lobato":
        a, b = p[:5], p[5:]
        return (a * (2 + b * q2) / (1 + b * q2) ** 2).sum(-1)
    a, b, c, d = p[0:6:2], p[1:6:2], p[6::2], p[7::2]
    return (a / (q2 + b) + c * np.exp(-d * q2)).sum(-1)
