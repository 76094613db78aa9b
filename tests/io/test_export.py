"""Exports, read back by the programs they are meant for."""

import ase.io
import emdfile
import gemmi
import h5py
import mrcfile
import numpy as np
import ome_zarr_models.v04
import ome_zarr_models.v05
import pytest
import tifffile
import zarr
from ase import Atoms

from petomo.cli import main
from petomo.core.errors import UserError
from petomo.io.artefacts import write_atoms
from petomo.io.export import export_run
from petomo.io.export_cif import with_uncertainty
from petomo.io.export_grids import halved, pyramid
from petomo.io.volumes import GridData, read_grid, write_mrc, write_stack

VOXEL = (0.5, 0.31, 0.29)  # z y x
SHAPE = (7, 70, 65)
GRIDS = ["v.mrc", "v.map", "v.ome.zarr", "v.zarr", "v.emd", "v.tif", "v.ome.tif", "v.TIFF"]
ERROR = np.array([[0.012, 0.02, 0.3], [0.0996, 0.0, np.nan], [1.4, 13.0, 0.00195], [0.01, 0.01, 0.01]])


def blob():
    """A volume whose maximum is at x = 1.45, y = -0.93, z = 0.5 angstrom."""
    z, y, x = (
        (np.arange(n) - n // 2) * d - c for n, d, c in zip(SHAPE, VOXEL, (0.5, -0.93, 1.45), strict=True)
    )
    r2 = z[:, None, None] ** 2 + y[:, None] ** 2 + x**2
    return (np.exp(-r2) - 0.1).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    run = tmp_path / "Pt run"
    run.mkdir()
    write_mrc(run / "volume.mrc", blob(), VOXEL)
    write_stack(run / "projections.mrc", blob()[:3, :9, :8], VOXEL[1:])
    atoms = Atoms("PtAlPtX", [[1.25, -2.5, 3.125], [-4, 0.1, 0.2], [7, 6, -5], [0, 0, 0]])
    atoms.set_array("intensity", np.array([300.5, 40, 301, 7]))
    atoms.set_array("sigma", np.array([0.4, 0.41, 0.42, 0.43]))
    atoms.set_array("position_error", ERROR)
    write_atoms(run / "atoms.xyz", atoms)
    return run


def same_voxel(found):
    assert found == pytest.approx(VOXEL, rel=1e-6)


@pytest.mark.parametrize("name", ["v.mrc", "v.map"])
def test_mrc_passes_its_validator(folder, tmp_path, name, capsys):
    export_run(folder, tmp_path / name)
    assert mrcfile.validate(tmp_path / name), capsys.readouterr().out
    with mrcfile.open(tmp_path / name) as mrc:
        np.testing.assert_array_equal(mrc.data, blob())
        assert mrc.is_volume()


def test_projections_stay_a_stack(folder, tmp_path):
    for name in ("p.mrc", "p.emd", "p.tif", "p.ome.tif", "p.ome.zarr"):
        export_run(folder, tmp_path / name, "projections")
    assert mrcfile.validate(tmp_path / "p.mrc")
    with mrcfile.open(tmp_path / "p.mrc") as mrc:
        assert mrc.is_image_stack()
    emd = emdfile.read(tmp_path / "p.emd")
    assert (emd.dim_names, emd.dim_units, emd.units) == (("tilt", "y", "x"), ("", "A", "A"), "rad")
    np.testing.assert_allclose(emd.dims[0], [0, 1, 2])
    with tifffile.TiffFile(tmp_path / "p.tif") as tif:
        assert (tif.series[0].axes, tif.series[0].shape) == ("TYX", (3, 9, 8))
    image = ome_zarr_models.v04.Image.from_zarr(zarr.open_group(tmp_path / "p.ome.zarr", mode="r"))
    assert [(axis.name, axis.type) for axis in image.attributes.multiscales[0].axes] == [
        ("tilt", None),
        ("y", "space"),
        ("x", "space"),
    ]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr_passes_its_models(folder, tmp_path, version):
    models = {"0.4": ome_zarr_models.v04, "0.5": ome_zarr_models.v05}[version]
    export_run(folder, tmp_path / "v.ome.zarr", ome_version=version)
    group = zarr.open_group(tmp_path / "v.ome.zarr", mode="r")
    assert group.metadata.zarr_format == {"0.4": 2, "0.5": 3}[version]
    attributes = models.Image.from_zarr(group).attributes
    scales = (attributes if version == "0.4" else attributes.ome).multiscales[0]
    assert [(a.name, a.type, a.unit) for a in scales.axes] == [(n, "space", "angstrom") for n in "zyx"]
    assert [group[d.path].shape for d in scales.datasets] == [SHAPE, (4, 35, 33)]
    np.testing.assert_array_equal(group["0"][:], blob())
    for level, dataset in enumerate(scales.datasets):
        scale, move = dataset.coordinateTransformations
        same_voxel(np.array(scale.scale) / 2**level)
        top = np.unravel_index(group[dataset.path][:].argmax(), group[dataset.path].shape)
        where = np.array(top) * scale.scale + move.translation
        assert np.abs(where - (0.5, -0.93, 1.45)).max() <= 0.51 * max(scale.scale) * (level > 0) + 1e-6


def test_coarse_levels_keep_edges_and_centres():
    grid = GridData(np.arange(2 * 129 * 3, dtype=np.float32).reshape(2, 129, 3), (1.0, 0.5, 2.0))
    levels = pyramid(grid)
    assert [level[0].shape for level in levels] == [(2, 129, 3), (1, 65, 2), (1, 33, 1)]
    # a plane z = a + b y + c x is kept where nothing was repeated at an edge
    fine, (coarse, spacing, origin) = grid.values, levels[1]
    assert spacing == [2.0, 1.0, 4.0]
    assert origin == [-1.0 + 0.5, -64 * 0.5 + 0.25, -2.0 + 1.0]
    assert coarse[0, 3, 0] == fine[:, 6:8, 0:2].mean()
    assert coarse[0, -1, -1] == fine[:, -1, -1].mean()
    np.testing.assert_array_equal(halved(np.float32([[1, 3, 7]]), (1,)), [[2, 7]])


def test_emd_is_read_by_emdfile(folder, tmp_path):
    export_run(folder, tmp_path / "v.emd")
    array = emdfile.read(tmp_path / "v.emd")
    np.testing.assert_array_equal(array.data, blob())
    assert (array.name, array.units, array.dim_names) == ("potential", "V", ("z", "y", "x"))
    assert array.dim_units == ("A", "A", "A")
    same_voxel([dim[1] - dim[0] for dim in array.dims])
    assert [dim[n // 2] for dim, n in zip(array.dims, SHAPE, strict=True)] == pytest.approx([0, 0, 0])


def test_tiff_carries_its_pixel_size(folder, tmp_path):
    for name in ("v.tif", "v.ome.tif"):
        export_run(folder, tmp_path / name)
        np.testing.assert_array_equal(tifffile.imread(tmp_path / name), blob())
    with tifffile.TiffFile(tmp_path / "v.tif") as tif:
        page, about = tif.pages[0], tif.imagej_metadata
        dx, dy = (d / n for n, d in (page.tags["XResolution"].value, page.tags["YResolution"].value))
        same_voxel([about["spacing"], dy, dx])
        assert (about["unit"], about["slices"], about["xorigin"]) == ("angstrom", SHAPE[0], SHAPE[2] // 2)
    with tifffile.TiffFile(tmp_path / "v.ome.tif") as tif:
        pixels = tifffile.xml2dict(tif.ome_metadata)["OME"]["Image"]["Pixels"]
        same_voxel([pixels[f"PhysicalSize{axis}"] for axis in "ZYX"])
        assert {pixels[f"PhysicalSize{axis}Unit"] for axis in "ZYX"} == {"Å"}


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("name", "in_angstrom"),
    [
        ("v.mrc", (10.0, 10.0, 10.0)),
        ("v.emd", (1.0, 1.0, 1.0)),
        ("v.tif", (1.0, 1.0, 1.0)),  # its reader knows no other unit than micron: bare numbers
        ("v.ome.tif", None),  # its reader does not look at OME metadata
    ],
)
def test_rosettasciio_reads_it(folder, tmp_path, name, in_angstrom):
    pytest.importorskip("rsciio", reason="RosettaSciIO (GPL-3) is optional")
    from importlib import import_module

    export_run(folder, tmp_path / name)
    reader = {"mrc": "mrc", "emd": "emd", "tif": "tiff"}[name.split(".")[-1]]
    (found,) = import_module(f"rsciio.{reader}").file_reader(str(tmp_path / name))
    np.testing.assert_array_equal(found["data"], blob())
    if name == "v.mrc":
        assert [axis["units"] for axis in found["axes"][1:]] == ["nm", "nm"]
    if name == "v.emd":
        assert [axis["units"] for axis in found["axes"]] == ["Å", "Å", "Å"]
    if in_angstrom is not None:
        same_voxel([axis["scale"] * unit for axis, unit in zip(found["axes"], in_angstrom, strict=True)])


def test_xyz_keeps_element_and_uncertainty(folder, tmp_path):
    export_run(folder, tmp_path / "a.xyz")
    found = ase.io.read(tmp_path / "a.xyz")
    assert found.get_chemical_symbols() == ["Pt", "Al", "Pt", "X"]
    np.testing.assert_allclose(found.arrays["position_error"], ERROR, atol=1e-7)
    np.testing.assert_allclose(found.positions[0], [1.25, -2.5, 3.125])


def test_cif_is_read_by_ase_and_gemmi(folder, tmp_path):
    export_run(folder, tmp_path / "a.cif")
    block = gemmi.cif.read(str(tmp_path / "a.cif")).sole_block()
    table = block.find("_atom_site_", ["label", "type_symbol", "Cartn_x", "Cartn_y", "Cartn_z"])
    assert [list(row) for row in table] == [
        ["Pt1", "Pt", "1.250(12)", "-2.50(2)", "3.1(3)"],
        ["Al1", "Al", "-4.00(10)", "0.1000", "0.2000"],
        ["Pt2", "Pt", "7.0(14)", "6(13)", "-5.000(2)"],
        ["X1", "X", "0.000(10)", "0.000(10)", "0.000(10)"],
    ]
    assert list(block.find_values("_petomo_atom_site_integrated_potential")) == ["300.5", "40", "301", "7"]
    move = [float(block.find_value(f"_atom_sites_Cartn_tran_vector_{i}")) for i in (1, 2, 3)]
    found = ase.io.read(tmp_path / "a.cif")
    assert found.get_chemical_symbols() == ["Pt", "Al", "Pt", "X"]
    np.testing.assert_allclose(found.cell.lengths(), [21, 18.5, 18.125])
    # in the precision of the uncertainties
    np.testing.assert_allclose((found.positions + move)[0], [1.25, -2.5, 3.125], atol=0.05)
    structure = gemmi.read_small_structure(str(tmp_path / "a.cif"))
    place = structure.cell.orthogonalize(structure.sites[0].fract)
    np.testing.assert_allclose(np.array(place.tolist()) + move, [1.25, -2.5, 3.125], atol=0.05)


def test_cif_without_uncertainties_is_exact(folder, tmp_path):
    atoms = Atoms("O2", [[0.12345, 1, 2], [3, 4, 5]])
    write_atoms(folder / "atoms.xyz", atoms)
    export_run(folder, tmp_path / "a.cif")
    text = (tmp_path / "a.cif").read_text()
    assert "(" not in text.split("_atom_site_label")[1]
    assert "data_Pt_run\n" in text
    distance = ase.io.read(tmp_path / "a.cif").get_distance(0, 1)
    assert distance == pytest.approx(atoms.get_distance(0, 1), abs=1e-4)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.23456, 0.0123, "1.235(12)"),
        (1.23456, 0.0196, "1.23(2)"),
        (-0.5, 0.19, "-0.50(19)"),
        (123.4, 9.6, "123(10)"),
        (123.4, 0.96, "123.4(10)"),
        (1234.5, 150.0, "1234(150)"),
        (1.5, None, "1.5000"),
        (1.5, float("inf"), "1.5000"),
    ],
)
def test_uncertainty_in_brackets(value, error, text):
    assert with_uncertainty(value, error) == text


@pytest.mark.parametrize(
    ("name", "what", "words"),
    [
        ("a.pdb", None, "the suffix says no known format"),
        (".mrc", None, "the suffix says no known format"),
        ("a.mrc", "absorption", "absorption.mrc: there is no such file"),
        ("a.mrc", "spectrum", "choose one of volume, volume_completed"),
        ("a.mrc", "atoms", "atoms go into .xyz or .cif"),
        ("a.cif", "volume", ".cif holds atoms, not volume"),
        ("no/where.mrc", None, "no: there is no such folder"),
        ("there.mrc", None, "this exists already"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(folder, tmp_path, name, what, words):
    (tmp_path / "there.mrc").write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r".+") as error:
        export_run(folder, tmp_path / name, what)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "there.mrc").read_text() == "precious"


def test_unknown_ome_version_and_missing_folder(folder, tmp_path):
    with pytest.raises(UserError, match=r"choose 0\.4 or 0\.5"):
        export_run(folder, tmp_path / "v.zarr", ome_version="0.6")
    with pytest.raises(UserError, match="give a run folder"):
        export_run(tmp_path / "none", tmp_path / "v.mrc")


COLUMNS = "1\nProperties=species:S:1:pos:R:3:"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "3\n\nPt 0 0\n",
        "\x00\x01",
        "x\n\nPt 0 0 0\n",
        "5\n\nPt 0 0 0\n",
        "1\n\nPt 0 nan 0\n",
        f"{COLUMNS}position_error:R:2\nPt 0 0 0 1 1\n",
        f"{COLUMNS}position_error:S:3\nPt 0 0 0 a b c\n",
        f"{COLUMNS}intensity:R:2\nPt 0 0 0 1 1\n",
        f"{COLUMNS}sigma:S:1\nPt 0 0 0 wide\n",
    ],
)
def test_damaged_atoms_are_one_sentence(folder, tmp_path, content):
    (folder / "atoms.xyz").write_text(content)
    with pytest.raises(UserError, match=r"atoms\.xyz: the file is damaged"):
        export_run(folder, tmp_path / "a.cif")


def test_no_atoms(folder, tmp_path):
    write_atoms(folder / "atoms.xyz", Atoms())
    with pytest.raises(UserError, match="found no atoms"):
        export_run(folder, tmp_path / "a.cif")


@pytest.mark.parametrize("name", GRIDS)
def test_a_failed_write_leaves_nothing(folder, tmp_path, name, monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device", "v")

    places = ("h5py.Group.create_dataset", "tifffile.imwrite", "zarr.Array.__setitem__", "mrcfile.new")
    for place in places:
        monkeypatch.setattr(place, fail)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=rf"{name}: .* the disk is full"):
        export_run(folder, tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


def test_too_large_for_imagej(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("petomo.io.export_grids._IMAGEJ_BYTES", 1000)
    with pytest.raises(UserError, match=r"use \.ome\.tif"):
        export_run(folder, tmp_path / "v.tif")


def test_grids_of_a_run_know_their_place(folder):
    grid = read_grid(folder)
    assert grid.origin == pytest.approx((-1.5, -35 * 0.31, -32 * 0.29))
    assert (grid.unit, np.asarray(grid).shape) == ("V", SHAPE)
    stack = read_grid(folder, "projections")
    assert (stack.axes, stack.origin[0], stack.unit) == (("tilt", "y", "x"), 0.0, "rad")
    with h5py.File(folder / "volume.mrc", "w") as file:
        file["x"] = 1
    with pytest.raises(UserError, match="not a sound MRC file"):
        read_grid(folder)


def test_command(folder, tmp_path, monkeypatch, capsys):
    arguments = ["petomo", "export", str(folder), "--to", str(tmp_path / "v.zarr"), "--ome", "0.5"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code in (0, None)
    assert "v.zarr" in capsys.readouterr().out
    assert zarr.open_group(tmp_path / "v.zarr", mode="r").attrs["ome"]["version"] == "0.5"
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "this exists already" in capsys.readouterr().err
