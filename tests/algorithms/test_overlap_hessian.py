"""Atoms that overlap in the images, against the images themselves and the likelihood's own curvature."""

import numpy as np
import pytest
import torch
from test_atom_refinement import objective, reader, sites, truth

from petomo.algorithms.atom_curvatures import Curvatures
from petomo.algorithms.atom_overlap import look_up, overlap_blocks, overlap_tables, transfer
from petomo.algorithms.bundle_preconditioner import (
    Arrow,
    BundlePreconditioner,
    atom_sensitivity,
    lateral_motion,
)
from petomo.algorithms.overlap_hessian import OverlapHessian
from petomo.algorithms.site_errors import _without_rigid_motion
from petomo.algorithms.site_review import keep_sites
from petomo.physics.atomic_potential import half_plane

PAIR = torch.tensor([[0.13, 0.21, 0.9], [-0.34, 0.52, -0.9]], dtype=torch.float64)


def pair_model(points=PAIR, tilts=(0.0,)):
    model = truth(tilts=tilts)
    keep_sites(model, sites([13, 8], points))
    model.angles.data[:, 0], model.angles.data[:, 2] = 0.0, 0.0
    model.occupancy.data[:] = torch.tensor([0.8, 1.1])
    model.variance.data[:] = 0.1  # so wide that pixels resolve them
    return model


def filtered(model):
    """Image of the phase as the patterns show it."""
    image = model.phase(0).detach().double().sum(0)
    q2 = half_plane(image.shape, model.pixel_size)
    return torch.fft.irfft2(torch.fft.rfft2(image) * transfer(model, q2).sqrt(), s=image.shape)


def derivatives(model, atom):
    """Of the image in x, y, occupancy and variance of an atom."""
    out = []
    places = [model.sites.data[atom, 0], model.sites.data[atom, 1]]
    places += [model.occupancy.data[atom], model.variance.data[atom]]
    for place, step in zip(places, (1e-3, 1e-3, 1e-3, 1e-5), strict=True):
        kept, images = place.clone(), []
        for side in (1, -1):
            place.copy_(kept + side * step)
            images.append(filtered(model))
        place.copy_(kept)
        out.append((images[0] - images[1]) / (2 * step))
    return torch.stack(out).flatten(1)


@pytest.mark.parametrize(("one", "other"), [(0, 1), (1, 0), (0, 0), (1, 1)])
def test_blocks_are_products_of_images(one, other):
    model = pair_model()
    ours, theirs = derivatives(model, one), derivatives(model, other)
    expected = ours @ theirs.T
    tables, place = overlap_tables(model, 4.0)
    z = model.numbers
    lab, occupancy = model.lab(0).detach()[:, :2], model.occupancy.detach()
    offset = (lab[other] - lab[one])[None]
    entries = look_up(tables, torch.tensor([place[int(z[one]), int(z[other])]]), offset.norm(dim=1))
    (found,) = overlap_blocks(entries, offset, occupancy[one][None], occupancy[other][None])
    scale = ours.norm(dim=1)[:, None] * theirs.norm(dim=1)
    assert ((found - expected).abs() / scale).max() < 0.02


def hessian(model):
    target = objective(model, reader(model))
    return OverlapHessian(model, Curvatures(model, 4.0), target.options.precisions()), target


def random_step(model, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = (len(model.numbers), 5), (len(model.angles), 9)
    return tuple(torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes)


def dot(a, b):
    return float(sum((x * y).sum() for x, y in zip(a, b, strict=True)))


def test_product_is_symmetric_and_positive_and_solved():
    model = truth()
    product, _ = hessian(model)
    a, b = random_step(model, 1), random_step(model, 2)
    assert dot(a, product(b)) == pytest.approx(dot(b, product(a)), rel=1e-9)
    assert dot(a, product(a)) > 0
    answer = product.solve(product(a))
    rest = tuple(x - y for x, y in zip(answer, a, strict=True))
    assert dot(rest, product(rest)) < 1e-5 * dot(a, product(a))


def test_what_two_in_line_are_apart_is_as_soft_as_the_likelihood_says():
    """One that grows at the cost of the other behind it hardly shows; each by itself does."""
    points = torch.tensor([[0.1, 0.2, 0.9], [0.1, 0.2, -0.9]], dtype=torch.float64)
    model = pair_model(points, tilts=(-0.2, 0.0, 0.2))
    product, target = hessian(model)
    names = [name for name, _ in model.named_parameters()]
    for signs, least_neglect in (((1.0, -1.0), 2.0), ((1.0, 1.0), 0.0)):
        growth = torch.tensor(signs, dtype=torch.float64)
        parts = [torch.zeros_like(p.data) for p in model.parameters()]
        parts[names.index("occupancy")] = growth
        mode, point, h = torch.cat([p.flatten() for p in parts]), target.point(), 1e-3
        true = float(mode @ (target(point + h * mode)[1] - target(point - h * mode)[1])) / (2 * h)
        target.go(point)
        atoms = torch.nn.functional.pad(growth[:, None], (3, 1))
        step = atoms, torch.zeros(len(model.angles), 9, dtype=torch.float64)
        assert 0.4 < dot(step, product(step)) / true < 2.5
        alone = float(torch.einsum("ni,nij,nj->", atoms, product.atoms, atoms))
        assert alone / true > least_neglect


def test_atoms_far_behind_each_other_are_neighbours():
    model = pair_model(torch.tensor([[0.0, 0.0, 9.0], [0.0, 0.0, -9.0]], dtype=torch.float64))
    product, _ = hessian(model)
    assert [p.tolist() for p in product.pairs] == [[0], [1]]
    keep_sites(model, sites([13, 8], torch.tensor([[0.0, 2.5, 1.0], [0.0, -2.5, 1.0]])))
    product, _ = hessian(model)
    assert len(product.pairs[0]) == 0
    a = random_step(model, 1)
    assert np.isfinite(dot(a, product.solve(a)))


def test_tilts_that_are_not_known_add_to_the_variance_of_sites():
    """A unit force on one coordinate moves it by its variance: its own, and what the tilts add."""
    model = truth()
    target, curvatures = objective(model, reader(model)), Curvatures(model, 4.0)
    curvatures.strain.zero_()
    bundle = BundlePreconditioner(model, curvatures, target.options.precisions()._replace(scale=1e-9))
    own, shared = bundle.arrow.variance(lambda fields: fields)
    still = torch.zeros(len(model.angles), 9, dtype=torch.float64)
    for atom, axis in ((0, 0), (3, 1), (5, 2)):
        force = torch.zeros(len(model.numbers), 3, dtype=torch.float64)
        force[atom, axis] = 1.0
        moved = float(bundle.sites_and_tilts(force, still)[0][atom, axis])
        assert moved == pytest.approx(float(own[atom, axis] + shared[atom, axis]), rel=1e-5)
        assert shared[atom, axis] > 0.1 * own[atom, axis]


def test_counting_more_tells_no_more_of_what_priors_alone_hold():
    """A strain that scans and angles make up for: its variance stays, while that of single atoms falls."""
    model = truth()
    target, curvatures = objective(model, reader(model)), Curvatures(model, 4.0)
    across, motion = lateral_motion(model)
    weight = curvatures.moves[:, None] * atom_sensitivity(model)[0]
    precision = target.options.precisions().tilt
    stretch = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    field = _without_rigid_motion(model.sites.detach())((model.sites.detach() * stretch)[None])[0]
    field = field / field.norm()

    def along(fields):
        return torch.einsum("fni,ni->f", fields, field)[:, None, None] * field

    def variances(times, *damping):
        own, shared = Arrow(times * weight, across, motion, precision, *damping).variance(along)
        return own, float(shared.sum())

    (own, shared), (least, still) = (variances(n, (0.0, 0.0, 1e-9)) for n in (1e2, 1e4))
    torch.testing.assert_close(least, own / 1e2)
    assert still == pytest.approx(shared, rel=0.02)
    assert variances(1e4)[1] < 0.1 * shared  # which is why errors are not damped
