"""A sound series raises nothing; spoilt in one way, exactly that is found."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from petomo.core.dataset import ArraySource, FourDSTEM, TiltSeries, mirrored
from petomo.io.readers import open_tilt_series, validate_counts
from petomo.io.settings import DataSettings
from petomo.simulation.acquisition import draw_truth, mean_patterns, tilt_generator
from petomo.simulation.spec import SimulationSpec
from petomo.simulation.specimen import build_specimen
from petomo.workflow.diagnose import diagnose

SPEC = {
    "specimen": {"edge_angstrom": 10, "core_angstrom": 5},
    "stage_tilt_degree": [-24, -16, -8, 0, 8, 16, 24],
    "scan_shape": (12, 14),
    "scan_step_angstrom": 1.4,
    "pattern_pixels": (33, 37),
    "pixel_angstrom": (0.36, 0.34),
    "slice_angstrom": 2.0,
    "phonons": {"configurations": 1},
    "dose_per_tilt": 3e4,
}


def simulated(**changes) -> TiltSeries:
    spec = SimulationSpec(**{**SPEC, **changes})
    atoms, tilts = build_specimen(spec.specimen, tilt_generator(spec.seed, -1)), []
    for number, angle in enumerate(spec.stage_tilt_degree):
        rng = tilt_generator(spec.seed, number)
        truth = draw_truth(spec, number, rng)
        counts = rng.poisson(mean_patterns(spec, atoms, truth, rng)).astype(np.uint16)
        tilts.append(
            FourDSTEM(
                ArraySource(counts),
                spec.energy_kev * 1e3,
                spec.semiangle_mrad,
                spec.scan_shape,
                spec.scan_step_angstrom,
                spec.detector_sampling,
                math.radians(angle),
                spec.defocus_angstrom,
                math.radians(spec.scan_rotation_degree),
                name=f"t{number}",
            )
        )
    return TiltSeries(tuple(tilts))


@pytest.fixture(scope="module")
def sound():
    return simulated()


def changed(series, function=None, only=None, **attributes):
    """Counts of the tilts ``only`` (default all) put through ``function``, attributes replaced in all."""
    tilts = []
    for number, tilt in enumerate(series):
        counts = tilt.source.read(np.arange(len(tilt)))
        if function is not None and (only is None or number in only):
            counts = function(counts)
        tilts.append(replace(tilt, source=ArraySource(counts), **attributes))
    return TiltSeries(tuple(tilts))


def found(series):
    return {finding.kind: finding for finding in diagnose(series, validate_counts(series)).findings}


def only(series, kind):
    findings = found(series)
    assert set(findings) == {kind}, [str(finding) for finding in findings.values()]
    assert findings[kind].action
    return findings[kind]


def test_a_sound_series_raises_nothing(sound):
    diagnosis = diagnose(sound, validate_counts(sound))
    assert diagnosis.findings == ()
    text = "\n".join(diagnosis.measured)
    assert "half turn 100% sure" in text
    assert "pixels off centre" in text


@pytest.mark.parametrize("series", ["sim_tiny_13", pytest.param("sim_ptal2o3_27", marks=pytest.mark.slow)])
def test_the_reference_simulations_raise_nothing(shared_data, series):
    opened = open_tilt_series(DataSettings(root=str(shared_data / series), tilts="tilt_*.h5"))
    diagnosis = diagnose(opened, validate_counts(opened))
    assert diagnosis.findings == ()
    assert diagnosis.seconds < 30


FLIPS = [(bool(n & 1), bool(n & 2), bool(n & 4)) for n in range(1, 8)]


def stored_under(flip):
    """What a detector stores that needs ``flip`` to come right."""

    def store(counts):
        counts = counts.transpose(0, 2, 1) if flip[2] else counts
        counts = mirrored(counts, 2) if flip[1] else counts
        return np.ascontiguousarray(mirrored(counts, 1) if flip[0] else counts)

    return store


@pytest.mark.parametrize("flip", FLIPS)
def test_each_flip_of_the_detector_is_found(sound, flip):
    sampling = sound[0].detector_sampling
    spoilt = changed(sound, stored_under(flip), detector_sampling=sampling[::-1] if flip[2] else sampling)
    finding = only(spoilt, "orientation")
    assert finding.keys == {"data.flip": list(flip)}
    assert finding.confidence > 0.8
    assert f"set data.flip: {list(flip)}".lower() in str(finding)
    mended = changed(spoilt, flip=flip, detector_sampling=sampling)
    assert found(mended) == {}


def test_a_flip_too_many_is_found(sound):
    finding = only(changed(sound, flip=(True, False, False)), "orientation")
    assert finding.keys == {"data.flip": [False, False, False]}


@pytest.mark.parametrize("degrees", [20, -35])
def test_a_rotation_of_the_scan_is_found(sound, degrees):
    finding = only(changed(sound, scan_rotation=math.radians(degrees)), "orientation")
    assert list(finding.keys) == ["data.scan_rotation_degree"]
    assert finding.keys["data.scan_rotation_degree"] == pytest.approx(0, abs=3)
    assert f"not {degrees:.1f}" in str(finding)


def test_a_mirrored_and_turned_detector_is_found():
    turned = simulated(scan_rotation_degree=25, stage_tilt_degree=[-16, 0, 12])
    assert found(turned) == {}
    finding = only(changed(turned, stored_under((True, False, False)), scan_rotation=0.0), "orientation")
    assert finding.keys["data.flip"] == [True, False, False]
    assert finding.keys["data.scan_rotation_degree"] == pytest.approx(25, abs=4)


def test_a_wrong_sign_of_the_defocus_is_found(sound):
    finding = only(changed(sound, defocus=-60.0), "defocus_sign")
    assert "60 Å overfocus is given" in str(finding)
    assert 30 < finding.keys["data.defocus_angstrom"] < 130


def test_an_unknown_defocus_is_estimated(sound):
    finding = only(changed(sound, defocus=None), "defocus_unknown")
    assert finding.severity == "note"
    assert 30 < finding.keys["data.defocus_angstrom"] < 130


def test_descan_is_found(sound):
    y, x = np.divmod(np.arange(12 * 14), 14)
    moves = y // 4 - 1, 1 - x // 5

    def drifting(counts):
        return np.stack(
            [np.roll(pattern, move, (0, 1)) for pattern, *move in zip(counts, *moves, strict=True)]
        )

    finding = only(changed(sound, drifting, only=(1, 2)), "descan")
    assert finding.tilts == ("t1", "t2")
    np.testing.assert_allclose(finding.measured["t1"], [[2.6, 0], [0, -2.6]], atol=0.3)


def test_patterns_off_centre_are_found(sound):
    finding = only(changed(sound, lambda counts: np.roll(counts, (1, -2), (1, 2)), only=(4,)), "beam_centre")
    assert finding.tilts == ("t4",)
    assert finding.measured["t4"] == pytest.approx([1, -2], abs=0.1)


@pytest.mark.parametrize("flip", [(False, False, False), (True, False, True)])
def test_bad_pixels_are_found_where_they_are_stored(sound, flip):
    hot, dead = [[3, 30], [15, 20], [15, 21]], [[12, 18], [20, 16]]

    def spoil(counts):
        counts = stored_under(flip)(counts).copy()
        for y, x in hot:
            counts[:, y, x] += 300
        for y, x in dead:
            counts[:, y, x] = 0
        return counts

    spoilt = changed(sound, spoil, flip=flip)
    findings = found(spoilt)
    assert set(findings) == {"hot_pixels", "dead_pixels"}
    for finding in findings.values():
        assert finding.keys == {"data.bad_pixels": sorted(hot + dead)}
        assert f"set data.bad_pixels: {sorted(hot + dead)}" in finding.action
    assert found(changed(spoilt, bad_pixels=tuple(map(tuple, hot + dead)))) == {}
    (left,) = found(changed(spoilt, bad_pixels=tuple(map(tuple, hot)))).values()
    assert left.measured["pixels"] == dead
    assert left.keys == {"data.bad_pixels": sorted(hot + dead)}, "those named already stay in the list"
    assert findings["hot_pixels"].measured["pixels"] == hot
    assert findings["dead_pixels"].measured["pixels"] == dead
    assert "3 detector pixel(s) are hot" in str(findings["hot_pixels"])
    assert "[3, 30], [15, 20], [15, 21]" in str(findings["hot_pixels"])


def test_one_hot_pixel_in_focus_of_attention_hides_nothing_else(sound):
    """A stuck pixel neither hides saturation nor moves the centre of mass."""

    def spoil(counts):
        counts = np.minimum(counts, 150)
        counts[:, 2, 3] = 4000
        return counts

    assert set(found(changed(sound, spoil))) == {"hot_pixels", "saturation"}


def test_saturated_tilts_are_found(sound):
    finding = only(changed(sound, lambda counts: np.minimum(counts, 150), only=(2, 5)), "saturation")
    assert finding.tilts == ("t2", "t5")
    assert finding.measured["t2"]["level"] == 150
    assert "clips at 150 electrons in 2 of 7 tilts" in str(finding)


@pytest.mark.parametrize("share", [0.95, 1.05])
def test_a_wrong_semiangle_is_found(sound, share):
    finding = only(changed(sound, semiangle_mrad=25 * share), "semiangle")
    assert finding.keys["data.semiangle_mrad"] == pytest.approx(25, rel=0.025)


def test_a_stretched_detector_is_found(sound):
    ky, kx = sound[0].detector_sampling
    finding = only(changed(sound, detector_sampling=(ky * 1.04, kx / 1.04)), "detector_stretch")
    assert finding.keys["data.dk_per_angstrom"] == pytest.approx([ky, kx], rel=0.02)


def test_exchanged_angles_are_found(sound):
    order = [0, 1, 2, 3, 4, 5, 6]
    order[1], order[5] = 5, 1
    angles = sound.stage_tilts.tolist()
    shuffled = TiltSeries(tuple(replace(sound[i], stage_tilt=a) for i, a in zip(order, angles, strict=True)))
    findings = diagnose(shuffled, validate_counts(shuffled)).findings
    assert {finding.kind for finding in findings} == {"misplaced_tilt"}
    assert {finding.tilts for finding in findings} <= {("t1",), ("t5",)}


def test_a_tilt_of_something_else_is_found(sound):
    other = simulated(seed=5, stage_tilt_degree=[0], specimen={"source": "te_carbon"})[0]
    tilts = [replace(other, name="t3") if i == 3 else tilt for i, tilt in enumerate(sound)]
    findings = diagnose(TiltSeries(tuple(tilts)), validate_counts(TiltSeries(tuple(tilts)))).findings
    assert {finding.tilts for finding in findings} == {("t3",)}
    assert "misplaced_tilt" in {finding.kind for finding in findings}


def test_another_dose_is_found(sound):
    rng = np.random.default_rng(1)
    thinned = changed(sound, lambda counts: rng.binomial(counts, 0.6).astype(np.uint16), only=(6,))
    finding = only(thinned, "dose")
    assert finding.tilts == ("t6",)
    assert "data.exclude" in finding.action


def test_a_blurred_tilt_is_found(sound):
    blurred = changed(
        sound, lambda counts: ndimage.gaussian_filter(counts.astype(np.float32), (0, 3, 3)), only=(3,)
    )
    finding = only(blurred, "profile")
    assert finding.tilts == ("t3",)


def test_what_cannot_be_told_is_said(sound):
    noise = changed(sound, lambda counts: np.random.default_rng(0).poisson(5, counts.shape).astype(np.uint16))
    diagnosis = diagnose(noise, validate_counts(noise))
    assert diagnosis.findings == ()
    text = "\n".join(diagnosis.measured)
    assert "no bright-field disk stands out" in text
    assert "cannot be told" in text


def test_a_disk_of_a_pixel_is_unusable(sound):
    findings = found(changed(sound, detector_sampling=(1.2, 1.2)))
    assert findings["disk_too_small"].severity == "error"


class Watched:
    """A source that notes how many patterns are asked for at once."""

    def __init__(self, source, shape):
        self.source, self.shape, self.most, self.reads = source, shape, 0, 0

    def read(self, indices):
        self.most, self.reads = max(self.most, len(indices)), self.reads + len(indices)
        return self.source.read(indices % self.source.shape[0])


def test_large_series_are_read_in_blocks_and_only_in_part(sound, monkeypatch):
    from petomo.workflow import measures

    monkeypatch.setattr(measures, "_HELD_BYTES", 0)
    monkeypatch.setattr(measures, "_WINDOW", 20)
    monkeypatch.setattr(measures, "_BLOCK_BYTES", 200 * 33 * 37 * 4)
    count = 200 * 180
    tilt = replace(sound[0], source=Watched(sound[0].source, (count, 33, 37)), scan_shape=(200, 180))
    diagnose(TiltSeries((tilt,)), [1.0])
    assert tilt.source.most <= 200
    assert tilt.source.reads < 0.75 * count
