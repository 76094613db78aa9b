"""Fit of a partially coherent probe to the patterns of one tilt, by Gauss-Newton steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from petomo.physics.multislice import MultisliceOptics
from petomo.physics.partial_coherence import ProbeModel

#: Moves for the derivatives, in angstrom, square angstrom, mrad or as a share.
_MOVES = {"electrons": 1e-3, "semiangle": 0.05, "focal": 20.0, "C10": 1.0, "C30": 1e3}
_MOVES |= dict.fromkeys(("C12a", "C12b"), 1.0) | dict.fromkeys(("C21a", "C21b", "C23a", "C23b"), 20.0)
_MOVES |= dict.fromkeys(("source_xx", "source_yy", "source_xy"), 2e-3)

_CHANGES = {
    "electrons": 0.1,
    "C10": 30.0,
    "source_xx": 0.05,
    "source_yy": 0.05,
    "source_xy": 0.03,
    "focal": 400.0,
}
#: Everything, with its expected spread about what the microscope was set to.
SPREADS = _CHANGES | {
    "semiangle": 0.5,
    "C12a": 15.0,
    "C12b": 15.0,
    "C21a": 150.0,
    "C21b": 150.0,
    "C23a": 150.0,
    "C23b": 150.0,
    "C30": 3e3,
}
#: What differs between the tilts, with its spread about what they share.
DRIFTS = _CHANGES | {"C12a": 1.0, "C12b": 1.0}
_LEAST_SOURCE, _LEAST_FOCAL = 2.5e-3, 25.0


def moved(probe: ProbeModel, change: dict[str, float]) -> ProbeModel:
    """The probe with some of `SPREADS` changed, held to what is physical."""
    xx, yy, xy = (
        s + change.get(f"source_{k}", 0.0) for s, k in zip(probe.source, ("xx", "yy", "xy"), strict=True)
    )
    xx, yy = max(xx, _LEAST_SOURCE), max(yy, _LEAST_SOURCE)
    most = 0.9 * (xx * yy) ** 0.5
    aberrations = dict(probe.aberrations)
    for name, value in change.items():
        if name.startswith("C"):
            aberrations[name] = aberrations.get(name, 0.0) + value
    return replace(
        probe,
        semiangle_mrad=probe.semiangle_mrad + change.get("semiangle", 0.0),
        electrons=probe.electrons * (1 + change.get("electrons", 0.0)),
        source=(xx, yy, min(most, max(-most, xy))),
        focal_variance=max(_LEAST_FOCAL, probe.focal_variance + change.get("focal", 0.0)),
        aberrations=aberrations,
    )


@torch.no_grad()
def fit_probe(
    probe: ProbeModel,
    predict: Callable[[Tensor], Tensor],
    measured: Tensor,
    loss,
    optics: MultisliceOptics,
    members: int,
    iterations: int = 1,
    start: ProbeModel | None = None,
    spreads: Mapping[str, float] = SPREADS,
) -> tuple[ProbeModel, float]:
    """Improve a probe with everything else held.

    Parameters
    ----------
    probe : ProbeModel
        Where to begin.
    predict : callable
        Model intensities ``(k, ky, kx)`` for coherent probes ``(member, y, x)``.
    measured : Tensor
        Electrons, like the predictions.
    loss : Loss
        A negative log-likelihood.
    optics : MultisliceOptics
        Window and energy.
    members : int
        See `ProbeModel.ensemble`.
    iterations : int
        Gauss-Newton steps; one that does not help is shortened, then given up.
    start : ProbeModel, optional
        Centre of the priors; default ``probe``.
    spreads : mapping
        What to fit and how far each is expected from ``start``, see `SPREADS` and `DRIFTS`.

    Returns
    -------
    ProbeModel, float
        The probe and its loss per pattern.
    """
    start, names = start or probe, tuple(spreads)
    steps, widths = (torch.tensor([t[n] for n in names], dtype=torch.float64) for t in (_MOVES, spreads))

    def patterns(model: ProbeModel) -> Tensor:
        return predict(model.ensemble(optics.window, optics.energy_ev, members))

    def cost(intensity: Tensor, model: ProbeModel) -> float:
        strays = (_difference(model, start, names) / widths).square().sum()
        return float(loss(intensity, measured)[0].double().sum() + 0.5 * strays)

    now = patterns(probe)
    value = cost(now, probe)
    for _ in range(iterations):
        amplitude = (now + 1e-3).sqrt()
        _, slope = loss(now, measured)
        jacobian = torch.stack(
            [
                (((patterns(moved(probe, {n: float(h)})) + 1e-3).sqrt() - amplitude) / h).flatten().double()
                for n, h in zip(names, steps, strict=True)
            ]
        )
        stray = _difference(probe, start, names)
        # dL/dp = dL/dI 2 a da/dp
        gradient = (jacobian @ (2 * slope * amplitude).flatten().double()).cpu() + stray / widths**2
        normal = loss.curvature * (jacobian @ jacobian.T).cpu() + torch.diag(widths**-2)
        full = -torch.linalg.solve(normal * (1 + 1e-3 * torch.eye(len(names))), gradient)
        for share in (1.0, 0.3, 0.1):
            trial = moved(probe, dict(zip(names, (share * full).tolist(), strict=True)))
            intensity = patterns(trial)
            if (new := cost(intensity, trial)) < value:
                probe, now, value = trial, intensity, new
                break
        else:
            break
    return probe, float(loss(now, measured)[0].sum()) / len(measured)


def share(probes: Sequence[ProbeModel]) -> list[ProbeModel]:
    """The probes with one semi-angle, and but for C10 one set of aberrations: their means over the tilts.

    Aberrations that change from tilt to tilt can make up for a stretched specimen.
    """
    names = {name for p in probes for name in p.aberrations} - {"C10"}
    common = {n: sum(p.aberrations.get(n, 0.0) for p in probes) / len(probes) for n in sorted(names)}
    angle = sum(p.semiangle_mrad for p in probes) / len(probes)
    return [replace(p, semiangle_mrad=angle, aberrations={**p.aberrations, **common}) for p in probes]


def _difference(a: ProbeModel, b: ProbeModel, names: Sequence[str]) -> Tensor:
    def values(p: ProbeModel) -> list[float]:
        source = dict(zip(("source_xx", "source_yy", "source_xy"), p.source, strict=True))
        table = (
            {"electrons": p.electrons / b.electrons, "focal": p.focal_variance} | source | dict(p.aberrations)
        )
        return [table.get(n, 0.0) for n in names]

    return torch.tensor(values(a), dtype=torch.float64) - torch.tensor(values(b), dtype=torch.float64)
