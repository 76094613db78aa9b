"""Shape glossary used in every signature.

Axes are ``z y x`` for volumes, ``y x`` for images, ``k`` for scan positions,
``mode`` for incoherent probe modes, ``ky kx`` for the detector, ``tilt`` for
the tilt series. Vectors are ``(x, y)`` or ``(x, y, z)`` in angstrom.
"""

from jaxtyping import Complex, Float, Int
from torch import Tensor

Volume = Float[Tensor, "z y x"]
Slices = Float[Tensor, "slice y x"]
Image = Float[Tensor, "y x"]
Modes = Complex[Tensor, "mode y x"]
Patterns = Float[Tensor, "k ky kx"]
Positions = Float[Tensor, "k 2"]
Indices = Int[Tensor, "k"]

__all__ = ["Image", "Indices", "Modes", "Patterns", "Positions", "Slices", "Volume"]
