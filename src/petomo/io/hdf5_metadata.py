"""Calibration in HDF5 files of known layout: EMD 0.2/1.0 and py4DSTEM, Prismatic, HyperSpy, NeXus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np

from petomo.io.calibration import as_number, as_string, axes_attributes, axis_step

Found = tuple[dict[str, Any], dict[str, str]]
_INSTRUMENT = {
    "beam_energy": ("energy_ev", 1e3),
    "convergence_angle": ("semiangle_mrad", 1.0),
    "tilt_alpha": ("nominal_tilt_deg", 1.0),
}
"""HyperSpy's names below ``Acquisition_instrument/TEM`` (keV, mrad, degree)."""


def conventions(file: h5py.File, array: h5py.Dataset) -> Found:
    """What the layouts known here say about ``array``, under petomo's names."""
    attributes: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layout in (_emd, _prismatic, _hyperspy, _nexus):
        found, where = layout(file, array)
        attributes |= found
        origins |= where
    return attributes, origins


def instrument_attributes(values: dict[str, Any], where: str) -> Found:
    """Petomo's attributes from HyperSpy's metadata of a TEM (flat names)."""
    attributes, origins = {}, {}
    for name, (key, scale) in _INSTRUMENT.items():
        number = as_number(values.get(name))
        if number:  # zero is what programs write where nothing was recorded
            attributes[key], origins[key] = number * scale, f"{where}/{name}"
    return attributes, origins


def _item(group: Any, name: str) -> Any:
    """A member that lies in this file, or None."""
    if not isinstance(group, h5py.Group):
        return None
    try:
        link = group.get(name, getlink=True)
    except (KeyError, RuntimeError):  # no such member; NeXus writes '.' for an axis without values
        return None
    return None if isinstance(link, h5py.ExternalLink) else group.get(name)


def _scalar(group: Any, name: str) -> Any:
    """Value of a small dataset or attribute, or None."""
    item = _item(group, name)
    if isinstance(item, h5py.Dataset):
        return item[()] if item.size is not None and item.size <= 4 else None
    return group.attrs.get(name) if group is not None else None


def _emd(file: h5py.File, array: h5py.Dataset) -> Found:
    """Dimension vectors ``dim0``... (EMD 1.0, py4DSTEM) or ``dim1``... (EMD 0.2) beside the data."""
    parent = array.parent
    first = 0 if isinstance(_item(parent, "dim0"), h5py.Dataset) else 1
    names = [f"dim{first + axis}" for axis in range(array.ndim)]
    vectors: list[Any] = [_item(parent, name) for name in names]
    if "emd_group_type" not in parent.attrs or not all(isinstance(v, h5py.Dataset) for v in vectors):
        return {}, {}
    if "4DSTEM_simulation" in file:  # Prismatic labels angstrom as nm; see `_prismatic`
        return {}, {}
    return axes_attributes([(axis_step(v[:2]), v.attrs.get("units", "")) for v in vectors], names)


def _prismatic(file: h5py.File, array: h5py.Dataset) -> Found:
    """Prismatic's EMD: its axes are in angstrom and 1/angstrom, though labelled n_m and n_m^-1."""
    root = _item(file, "4DSTEM_simulation")
    vectors: list[Any] = [_item(array.parent, f"dim{axis + 1}") for axis in range(array.ndim)]
    if root is None or array.ndim != 4 or not all(isinstance(v, h5py.Dataset) for v in vectors):
        return {}, {}
    steps = [(axis_step(v[:2]), unit) for v, unit in zip(vectors, ("A", "A", "A^-1", "A^-1"), strict=True)]
    attributes, origins = axes_attributes(steps, ["dim1", "dim2", "dim3", "dim4"])
    settings: Any = root.get("metadata/metadata_0/original/simulation_parameters")
    for name, key, scale in (("E", "energy_ev", 1e3), ("sa", "semiangle_mrad", 1.0)):
        number = as_number(settings.attrs.get(name)) if settings is not None else None
        if number:
            attributes[key], origins[key] = number * scale, f"simulation_parameters/{name}"
    return attributes, origins


def _hyperspy(file: h5py.File, array: h5py.Dataset) -> Found:
    """HyperSpy: axis groups with ``scale`` and ``units``, and the instrument's metadata."""
    group = array.parent
    axes: list[Any] = [_item(group, f"axis-{number}") for number in range(array.ndim)]
    if not all(isinstance(axis, h5py.Group) for axis in axes):
        return {}, {}
    steps = [(axis.attrs.get("scale"), axis.attrs.get("units", "")) for axis in axes]
    names = [as_string(axis.attrs.get("name", number)) for number, axis in enumerate(axes)]
    attributes, origins = axes_attributes(steps, names)
    instrument: Any = file.get(f"{group.name}/metadata/Acquisition_instrument/TEM")
    if isinstance(instrument, h5py.Group):
        stage = _item(instrument, "Stage")
        values = dict(instrument.attrs) | (dict(stage.attrs) if stage is not None else {})
        found, where = instrument_attributes(values, "Acquisition_instrument/TEM")
        return attributes | found, origins | where
    return attributes, origins


def _classes(file: h5py.File) -> Iterator[tuple[str, Any]]:
    """(NX_class, group) of every NeXus group."""
    groups: list[Any] = []
    file.visititems(lambda _, item: groups.append(item) if "NX_class" in item.attrs else None)
    for group in groups:
        if isinstance(group, h5py.Group):
            yield as_string(group.attrs["NX_class"]), group


def nexus_signals(file: h5py.File) -> list[str]:
    """Paths of the signals of all NXdata groups."""
    names = []
    for kind, group in _classes(file):
        signal = as_string(group.attrs.get("signal", ""))
        item = _item(group, signal) if kind == "NXdata" and signal else None
        if isinstance(item, h5py.Dataset):
            names.append(str(item.name).strip("/"))
    return list(dict.fromkeys(names))


def _nexus(file: h5py.File, array: h5py.Dataset) -> Found:
    """NeXus: axes of the NXdata group, energy of an electron beam."""
    attributes: dict[str, Any] = {}
    origins: dict[str, str] = {}
    data = array.parent
    if as_string(data.attrs.get("NX_class", "")) == "NXdata" and "axes" in data.attrs:
        names = [as_string(name) for name in np.atleast_1d(np.asarray(data.attrs["axes"]))]
        axes: list[Any] = [_item(data, name) for name in names]
        if len(names) == array.ndim:
            steps = [
                (axis_step(axis[:2]), axis.attrs.get("units", ""))
                if isinstance(axis, h5py.Dataset) and axis.ndim == 1
                else (None, "")
                for axis in axes
            ]
            attributes, origins = axes_attributes(steps, names)
    found, where = nexus_energy(file)
    return attributes | found, origins | where


def nexus_energy(file: h5py.File) -> Found:
    """Energy of the beam, or of a source that says it gives electrons."""
    attributes: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for kind, group in _classes(file):
        electron = as_string(_scalar(group, "probe") or "").strip() == "electron"
        name = {"NXbeam": "incident_energy", "NXsource": "energy"}.get(kind)
        item = _item(group, name) if name else None
        if isinstance(item, h5py.Dataset) and (electron or kind == "NXbeam"):
            scale = {"eV": 1.0, "keV": 1e3}.get(as_string(item.attrs.get("units", "")))
            number = as_number(item[()]) if item.size == 1 else None
            if scale and number:
                attributes["energy_ev"], origins["energy_ev"] = number * scale, str(item.name).strip("/")
    return attributes, origins
