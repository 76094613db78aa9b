import dataclasses
import itertools

import numpy as np
import pytest
import torch
from skimage.restoration import denoise_tv_chambolle

from petomo.objectives.regularizers import (
    About,
    Butterworth,
    DepthKernel,
    Filter,
    Gaussian,
    GradientFilter,
    L1Imaginary,
    L1Real,
    NonNegative,
    Proximal,
    Support,
    TotalVariation3D,
    regularize_,
    regularize_gradient,
    separated,
    specimen_support,
)

SHAPE = (5, 8, 7)
VOXEL = (0.9, 0.4, 0.5)


def random_volume(dtype=torch.float64, shape=SHAPE, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def support_mask():
    return random_volume(seed=5) > 0


ALL = [
    L1Imaginary(0.3),
    L1Real(0.3),
    NonNegative(),
    Support(support_mask()),
    TotalVariation3D(0.2, VOXEL, nonnegative=True),
    Butterworth(0.6, 2, VOXEL),
    Gaussian(0.7, VOXEL),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("term", ALL, ids=lambda t: t.name)
def test_changes_the_same_tensor_and_keeps_the_optimiser(term, dtype):
    parameter = torch.nn.Parameter(random_volume(dtype))
    optimiser = torch.optim.Adam([parameter], lr=0.1)
    before, address = parameter.detach().clone(), parameter.data_ptr()
    parameter.abs().square().sum().backward()
    optimiser.step()
    regularize_([term], parameter, step=0.5)
    assert parameter.data_ptr() == address
    assert parameter.dtype == dtype
    assert parameter.requires_grad
    assert parameter.is_leaf
    filtered = parameter.detach().clone()
    assert not torch.equal(filtered, before)
    optimiser.step()
    assert not torch.equal(filtered, parameter.detach()), "the optimiser has lost the volume"


@pytest.mark.parametrize(
    "term", [L1Real(0.4), TotalVariation3D(0.3, VOXEL, iterations=3000)], ids=lambda t: t.name
)
def test_prox_minimises_its_objective(term):
    v, step = random_volume(), 0.7
    x = v.clone()
    term.prox_(x, step)

    def objective(y):
        return float(term.value(y) + (y - v).square().sum() / (2 * step))

    best = objective(x)
    assert best < objective(v)
    for seed, size in itertools.product(range(20), (1e-3, 1e-2, 0.1)):
        direction = random_volume(seed=seed + 1)
        # strong convexity: at the minimiser the objective grows at least by |d|^2 / (2 step)
        growth = objective(x + size * direction) - best
        assert growth >= 0.999 * size**2 * float(direction.square().sum()) / (2 * step) - 1e-6


def test_nonnegative_total_variation_beats_clamping_afterwards():
    v = random_volume() + 0.2
    term = TotalVariation3D(0.5, iterations=2000, nonnegative=True)
    x, clamped = v.clone(), v.clone()
    term.prox_(x, 1.0)
    TotalVariation3D(0.5, iterations=2000).prox_(clamped, 1.0)
    clamped.clamp_min_(0)

    def objective(y):
        return float(term.value(y) + (y - v).square().sum() / 2)

    assert x.min() >= 0
    assert objective(x) < objective(clamped) - 1e-6


@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex64])
def test_l1_on_complex_parts(dtype):
    v = random_volume(dtype)
    for term, part, other in [(L1Imaginary(2.0), "imag", "real"), (L1Real(2.0), "real", "imag")]:
        x = v.clone()
        term.prox_(x, 0.25)
        old = getattr(v, part)
        torch.testing.assert_close(getattr(x, part), old.sign() * (old.abs() - 0.5).clamp_min(0))
        assert torch.equal(getattr(x, other), getattr(v, other))
        assert term.value(v) == 2 * old.abs().sum()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_about_pulls_towards_its_reference(dtype):
    v, reference = torch.randn(3, 4, 5, dtype=dtype), torch.randn(3, 4, 5, dtype=torch.float64)
    wanted = v - reference
    L1Real(0.2).prox_(wanted, 0.5)
    About(reference, L1Real(0.2)).prox_(v, 0.5)
    torch.testing.assert_close(v, wanted + reference)
    near = reference + 0.05
    About(reference, L1Real(0.2)).prox_(near, 0.5)
    torch.testing.assert_close(near, reference)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_separable_terms_do_to_a_part_what_they_do_to_the_whole(dtype):
    about = About(random_volume(seed=8), L1Real(0.3))
    terms = [L1Imaginary(0.3), L1Real(0.3), NonNegative(), Support(support_mask()), about]
    part, whole = (slice(None), slice(2, 6)), random_volume(dtype)
    rows = whole[part].clone()
    of_rows = separated(terms, part)
    assert of_rows is not None
    regularize_(terms, whole, 0.5)
    regularize_(of_rows, rows, 0.5)
    torch.testing.assert_close(rows, whole[part], rtol=0, atol=0)


@pytest.mark.parametrize(
    "term",
    [
        TotalVariation3D(0.2, VOXEL),
        Butterworth(0.6, 2, VOXEL),
        About(torch.zeros(SHAPE), TotalVariation3D(0.2)),
    ],
)
def test_terms_that_see_neighbours_are_not_separable(term):
    assert separated([L1Real(0.3), term], (slice(None), slice(2, 6))) is None


def test_l1_of_the_imaginary_part_leaves_real_volumes_alone():
    v = random_volume()
    x = v.clone()
    L1Imaginary(9.0).prox_(x, 1.0)
    assert torch.equal(x, v)
    assert L1Imaginary(9.0).value(v) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("term", [NonNegative(), Support(support_mask())], ids=lambda t: t.name)
def test_projections_are_idempotent_and_nearest(term, dtype):
    v = random_volume(dtype)
    once = v.clone()
    term.prox_(once, 3.0)
    twice = once.clone()
    term.prox_(twice, 0.1)
    assert torch.equal(once, twice)
    # obtuse angle: (v - Pv).(y - Pv) <= 0 for every y of the convex set
    y = random_volume(dtype, seed=9)
    term.prox_(y, 1.0)
    assert float(((v - once).conj() * (y - once)).real.sum()) <= 1e-12


def wave(shape, voxel, index, dtype=torch.float64):
    """exp(2 pi i k.r) of integer FFT index, and |k|."""
    axes = [torch.arange(n, dtype=dtype) for n in shape]
    grid = torch.meshgrid(*axes, indexing="ij")
    phase = 2 * np.pi * sum(i * g / n for i, g, n in zip(index, grid, shape, strict=True))
    return torch.cos(phase), [i / (n * h) for i, n, h in zip(index, shape, voxel, strict=True)]


@pytest.mark.parametrize("index", [(2, 0, 0), (0, 3, 0), (0, 0, 4), (1, -2, 3)])
@pytest.mark.parametrize("order", [2, 5.5])
def test_butterworth_gain_at_cutoff_is_root_half(index, order):
    shape = (11, 18, 13)
    v, k = wave(shape, VOXEL, index)
    x = v.clone()
    Butterworth(float(np.linalg.norm(k)), order, VOXEL).filter_(x)
    torch.testing.assert_close(x, v / np.sqrt(2))
    x = v.clone()
    Butterworth(float(np.linalg.norm(k)) / 2, order, VOXEL).filter_(x)
    torch.testing.assert_close(x, v / np.sqrt(1 + 4.0**order))


def test_gaussian_keeps_mass_and_widens_by_sigma():
    shape, voxel, sigma = (31, 40, 27), (0.5, 0.3, 0.4), 0.8
    v = torch.zeros(shape, dtype=torch.float64)
    v[15, 20, 13] = 1
    Gaussian(sigma, voxel).filter_(v)
    torch.testing.assert_close(v.sum(), torch.ones((), dtype=torch.float64))
    for axis, h in enumerate(voxel):
        profile = v.sum([a for a in range(3) if a != axis])
        r = (torch.arange(shape[axis]) - shape[axis] // 2) * h
        assert float((profile * r**2).sum()) == pytest.approx(sigma**2, rel=2e-3)


def test_depth_kernel_follows_its_equation():
    shape, term = (12, 9, 10), DepthKernel(3.0, 0.5, VOXEL)
    floor = 0.5 / max(n * h for n, h in zip(shape, VOXEL, strict=True))
    for index in [(0, 2, 1), (1, 0, 3), (3, 2, -1), (2, 0, 0)]:
        v, (kz, ky, kx) = wave(shape, VOXEL, index)
        across2 = ky**2 + kx**2
        gain = (1 - np.arctan((3 * kz) ** 2 / (across2 + floor**2)) / (np.pi / 2)) * np.exp(-0.5 * across2)
        torch.testing.assert_close(term.filter_gradient(v), gain * v)
        assert 0 < gain <= 1


def test_depth_kernel_turns_with_the_beam():
    v = random_volume(shape=(9, 9, 9))
    along_z = DepthKernel(5.0, 0.3, 0.7).filter_gradient(v)
    along_x = DepthKernel(5.0, 0.3, 0.7, beam=(2.0, 0.0, 0.0)).filter_gradient(v.transpose(0, 2).contiguous())
    torch.testing.assert_close(along_x.transpose(0, 2), along_z)
    assert not torch.allclose(DepthKernel(5.0, 0.3, 0.7, beam=(1, 0, 1)).filter_gradient(v), along_z)
    with pytest.raises(ValueError, match="non-zero"):
        DepthKernel(5.0, 0.3, 0.7, beam=(0, 0, 0)).filter_gradient(v)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_depth_kernel_is_a_symmetric_positive_preconditioner(dtype):
    term = DepthKernel(90.0, 1.0, VOXEL, beam=(0.3, -0.2, 1.0))
    a, b = random_volume(dtype), random_volume(dtype, seed=1)
    left = (term.filter_gradient(a).conj() * b).sum()
    right = (a.conj() * term.filter_gradient(b)).sum()
    torch.testing.assert_close(left, right)
    assert (term.filter_gradient(a).conj() * a).sum().real > 0


def test_depth_kernel_can_keep_the_norm():
    g = random_volume()
    kept = DepthKernel(9.0, 1.0, VOXEL, keep_norm=True)
    plain = dataclasses.replace(kept, keep_norm=False).filter_gradient(g)
    assert plain.norm() < 0.8 * g.norm()
    torch.testing.assert_close(regularize_gradient([NonNegative(), kept], g).norm(), g.norm())


def test_total_variation_value_of_steps_on_anisotropic_voxels():
    v = torch.zeros(4, 6, 5, dtype=torch.float64)
    v[2:] = 3.0
    # one face of 30 voxels, jump 3, voxel three times as long along z as along x
    assert float(TotalVariation3D(0.5, (0.9, 0.6, 0.3)).value(v)) == pytest.approx(0.5 * 30 * 3 / 3)
    v = torch.zeros(4, 6, 5, dtype=torch.float64)
    v[2, 3, 2] = 1.0  # three forward differences at once, then one at each lower neighbour
    assert float(TotalVariation3D(1.0).value(v)) == pytest.approx(np.sqrt(3) + 3)


@pytest.mark.parametrize("shape", [(7, 10, 9), (13, 16)])
def test_total_variation_agrees_with_skimage(shape):
    v = random_volume(shape=shape, seed=3)
    v.narrow(0, 2, 4).add_(3)
    x = v.clone()
    TotalVariation3D(0.6, iterations=2000).prox_(x, 1.0)
    # same functional; scikit-image's fixed-point iteration is the slow one
    oracle = torch.as_tensor(denoise_tv_chambolle(v.numpy(), weight=0.6, eps=1e-12, max_num_iter=8000))
    assert (x - oracle).norm() < 0.02 * oracle.norm()
    value = TotalVariation3D(1.0).value
    assert value(x) < 0.7 * value(v)
    torch.testing.assert_close(x.mean(), v.mean())


def test_total_variation_falls_with_weight_and_default_iterations_suffice():
    v = random_volume()
    values, reference = [], None
    for weight in (0.0, 0.1, 0.3, 1.0):
        x = v.clone()
        TotalVariation3D(weight, VOXEL).prox_(x, 1.0)
        values.append(float(TotalVariation3D(1.0, VOXEL).value(x)))
        reference = v.clone()
        TotalVariation3D(weight, VOXEL, iterations=3000).prox_(reference, 1.0)
        assert (x - reference).norm() < 0.05 * v.norm()
    assert values == sorted(values, reverse=True)


def test_specimen_support_covers_and_grows():
    shape, voxel = (15, 24, 21), (1.0, 0.5, 0.7)
    z, y, x = np.meshgrid(
        *((np.arange(n) - n // 2) * h for n, h in zip(shape, voxel, strict=True)), indexing="ij"
    )
    radius = np.sqrt(z**2 + y**2 + x**2)
    volume = torch.as_tensor(np.where(radius < 3, 10.0, 0.0))
    tight = specimen_support(volume, voxel, threshold=0.5, grow=0.0, smooth=0.5).numpy()
    wide = specimen_support(volume, voxel, threshold=0.5, grow=1.5, smooth=0.5).numpy()
    assert tight[radius < 2.4].all()
    assert not tight[radius > 3.6].any()
    assert wide[radius < 3.8].all()
    assert not wide[radius > 5.2].any()
    with pytest.raises(ValueError, match="between 0 and 1"):
        specimen_support(volume, voxel, threshold=10)


def test_roles_and_names_are_distinct():
    depth = DepthKernel(90.0, 1.0, VOXEL)
    assert isinstance(depth, GradientFilter)
    assert not isinstance(depth, Proximal | Filter)
    assert isinstance(TotalVariation3D(1.0), Proximal)
    assert len({t.name for t in [*ALL, depth]}) == len(ALL) + 1
    with pytest.raises(ValueError, match="2 numbers for 3 axes"):
        Gaussian(1.0, (1.0, 1.0)).filter_(random_volume())
