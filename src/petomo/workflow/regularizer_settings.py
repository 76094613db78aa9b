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
    weight: NonNegativeFloat = Field(description="strength; 0 does nothing")


class L1Real(_Regularizer):
    """Soft threshold of the potential's real part."""

    type: Literal["l1_real"]
    weight: NonNegativeFloat = Field(description="strength; 0 does nothing")


class NonNegative(_Regularizer):
    """No negative potential."""

    type: Literal["nonnegative"]


class Butterworth(_Regularizer):
    """Radial low-pass."""

    type: Literal["butterworth"]
    cutoff_per_angstrom: PositiveFloat = Field(description="where the gain is 1 / sqrt 2")
    order: PositiveFloat = Field(default=2.0, description="steepness")


class DepthKernel(_Regularizer):
    """Missing-cone filter of the gradient along the beam."""

    type: Literal["depth_kernel"]
    weight: NonNegativeFloat = Field(description="strength; 0 does nothing")
    alpha: NonNegativeFloat = Field(default=1.0, description="damping of high frequencies in square angstrom")


class TotalVariation(_Regularizer):
    """Isotropic 3D total variation."""

    type: Literal["total_variation"]
    weight: NonNegativeFloat = Field(description="strength; 0 does nothing")


class Gaussian(_Regularizer):
    """Gaussian low-pass."""

    type: Literal["gaussian"]
    sigma_angstrom: PositiveFloat = Field(description="width in real space")


class Support(_Regularizer):
    """Nothing outside the specimen's own low-resolution outline."""

    type: Literal["support"]
    threshold: PositiveFloat = Field(
        default=0.1, description="share of the smoothed maximum that counts as specimen"
    )
    grow_angstrom: NonNegativeFloat = Field(default=3.0, description="margin around the outline")


RegularizerSettings = Annotated[
    L1Imaginary | L1Real | NonNegative | Butterworth | DepthKernel | TotalVariation | Gaussian | Support,
    Field(discriminator="type"),
]
