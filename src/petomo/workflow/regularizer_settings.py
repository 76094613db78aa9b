"""The regularisers a configuration can ask for, told apart by their ``type``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from petomo.io.settings import Section


class _Regularizer(Section):
    start: NonNegativeInt = Field(default=0, description="first iteration in which it acts")
    stop: PositiveInt | None = Field(default=None, description="iteration at which it ends; null = never")


class L1Imaginary(_Regularizer):
    """Soft threshold of the potential's imaginary part (paper Eq. 17)."""

    type: Literal["l1_imaginary"]
    weight: NonNegativeFloat


class L1Real(_Regularizer):
    """Soft threshold of the potential's real part."""

    type: Literal["l1_real"]
    weight: NonNegativeFloat


class NonNegative(_Regularizer):
    """No negative potential."""

    type: Literal["nonnegative"]


class Butterworth(_Regularizer):
    """Radial low-pass."""

    type: Literal["butterworth"]
    cutoff_per_angstrom: PositiveFloat
    order: PositiveFloat = 2.0


class DepthKernel(_Regularizer):
    """Missing-cone filter of the gradient along the beam."""

    type: Literal["depth_kernel"]
    weight: NonNegativeFloat
    alpha: NonNegativeFloat = 1.0


class TotalVariation(_Regularizer):
    """Isotropic 3D total variation."""

    type: Literal["total_variation"]
    weight: NonNegativeFloat


class Gaussian(_Regularizer):
    """Gaussian low-pass."""

    type: Literal["gaussian"]
    sigma_angstrom: PositiveFloat


class Support(_Regularizer):
    """Nothing outside the specimen's own low-resolution outline."""

    type: Literal["support"]
    threshold: PositiveFloat = Field(
        default=0.1, description="share of the smoothed maximum that counts as specimen"
    )
    grow_angstrom: NonNegativeFloat = 3.0


RegularizerSettings = Annotated[
    L1Imaginary | L1Real | NonNegative | Butterworth | DepthKernel | TotalVariation | Gaussian | Support,
    Field(discriminator="type"),
]
