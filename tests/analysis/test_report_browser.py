"""The report in headless Chromium: looked at, clicked, scrolled, turned, by mouse, touch and keyboard."""

import re

import numpy as np
import pytest

from petomo.analysis.report import write_report
from petomo.io import artefacts
from petomo.io.volumes import write_mrc
from report_runs import NASTY, VOXEL, Watched, browser, make_run

NUMBER = re.compile(r"[−-]?\d+\.\d+")


@pytest.fixture(scope="module")
def chromium():
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Address of a report and the volume in it."""
    folder = tmp_path_factory.mktemp("run")
    volume = make_run(folder)
    return write_report(folder).as_uri(), volume, folder


@pytest.fixture(scope="module")
def wide(chromium, report):
    return Watched(chromium, report[0])


def titles(page):
    """Where the slices lie: z, y, x."""
    words = page.locator(".slice h3").all_text_contents()
    return [float(NUMBER.search(text)[0].replace("−", "-")) for text in words]


def pixels(page, selector):
    return page.locator(selector).evaluate("canvas => canvas.toDataURL()")


def settle(page):
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def at_rest(page):
    """The page's scroll position once it no longer changes."""
    before = None
    while before != (now := page.evaluate("scrollY")):
        before = now
        page.wait_for_timeout(250)
    return now


def click(page, selector, across, up):
    """Click at fractions of an element's width and height, from the lower left."""
    box = page.locator(selector).bounding_box()
    spot = {"x": across * box["width"], "y": (1 - up) * box["height"]}
    page.locator(selector).click(position=spot)
    settle(page)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_the_page_fits_makes_no_error_and_asks_for_nothing(chromium, report, width, scheme):
    seen = Watched(chromium, report[0], width, color_scheme=scheme, has_touch=width == 400)
    assert seen.page.evaluate("document.documentElement.scrollWidth") == width
    assert seen.page.locator("[data-viewer]").count() == 3
    assert seen.page.locator("[data-viewer][data-ready=yes]").count() == 3
    assert seen.text("h1") == NASTY
    dark = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(255, 255, 255)") == (scheme == "light")
    picture = seen.page.screenshot(full_page=True)
    assert len(picture) > 50_000
    small = seen.page.evaluate(
        """[...document.querySelectorAll("p, dd, dt, td, th, label, button, h1, h2, h3")]
        .filter(e => e.offsetWidth && parseFloat(getComputedStyle(e).fontSize) < 12).map(e => e.outerHTML)"""
    )
    assert small == []
    assert [r for r in seen.requests if not r.startswith(("file:", "data:"))] == []
    assert seen.errors == []
    seen.context.close()


def test_a_click_in_a_slice_moves_the_other_two(wide, report):
    _, volume, _ = report
    page = wide.page
    # the middle of voxel x = 12, y = 3 of 17 and 14
    click(page, '[data-key="slice z"]', 12.5 / 17, 3.5 / 14)
    x, y, z = (12 - 17 // 2) * VOXEL[2], (3 - 14 // 2) * VOXEL[1], 0.0
    assert titles(page) == pytest.approx([z, y, x])
    said = page.locator(".viewer[data-viewer=slices] > .said").text_content()
    value = float(re.search(r"Å: (\S+) V", said)[1].replace("−", "-"))
    assert value == pytest.approx(volume[11 // 2, 3, 12], abs=0.01)
    # z is up in the second slice, y to the right in the third
    click(page, '[data-key="slice y"]', 12.5 / 17, 9.5 / 11)
    assert titles(page)[0] == pytest.approx((9 - 11 // 2) * VOXEL[0])
    click(page, '[data-key="slice x"]', 8.5 / 14, 9.5 / 11)
    assert titles(page)[1] == pytest.approx((8 - 14 // 2) * VOXEL[1], abs=0.006)


def test_wheel_and_keys_step_through_the_slices_once_one_is_chosen(wide):
    page = wide.page
    canvas = page.locator('[data-key="slice z"]')
    page.locator('[data-key="through z"]').fill("5")
    canvas.hover()
    page.evaluate("document.activeElement.blur()")
    before = at_rest(page)
    page.mouse.wheel(0, 40)
    page.wait_for_timeout(300)
    assert at_rest(page) > before  # not chosen: the page scrolls
    assert titles(page)[0] == 0
    canvas.focus()
    canvas.hover()
    before = at_rest(page)
    page.mouse.wheel(0, 80)
    page.get_by_text(f"z = −{2 * VOXEL[0]:.2f} Å").wait_for(timeout=5000)
    assert at_rest(page) == before
    for key in ("PageUp", "PageUp", "PageUp", "ArrowLeft", "ArrowUp"):
        start = titles(page)
        page.keyboard.press(key)
        settle(page)
        step = np.array(titles(page)) - start
        moved = {"PageUp": (VOXEL[0], 0, 0), "ArrowLeft": (0, 0, -VOXEL[2]), "ArrowUp": (0, VOXEL[1], 0)}[key]
        np.testing.assert_allclose(step, moved, atol=0.011)


def test_an_atom_draws_the_crosshair_and_says_its_numbers(wide):
    page = wide.page
    page.locator('[data-key="through z"]').fill(str(11 // 2 + 2))
    settle(page)
    # Pt lies at x = 1.2, y = 0.8; the click is a little beside it
    click(page, '[data-key="slice z"]', (8 + 4.5 + 0.3) / 17, (7 + 2.5) / 14)
    assert titles(page) == pytest.approx([1.0, 0.8, 1.2])
    said = page.locator(".viewer[data-viewer=slices] > .said").text_content()
    assert "Pt, atom 0, 0.00 Å away: intensity 500 V Å³" in said
    with_atoms = pixels(page, '[data-key="slice z"]')
    page.get_by_label("Pt (1)").uncheck()
    settle(page)
    assert pixels(page, '[data-key="slice z"]') != with_atoms
    page.get_by_label("Pt (1)").check()
    settle(page)
    assert pixels(page, '[data-key="slice z"]') == with_atoms


def test_the_specimen_turns_by_mouse_and_keys_and_comes_back(wide):
    page = wide.page
    space = page.locator('[data-key="space"]')
    space.focus()
    page.keyboard.press("0")
    settle(page)
    start = pixels(page, '[data-key="space"]')
    box = space.bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 220, box["y"] + 150, steps=3)
    page.mouse.up()
    settle(page)
    dragged = pixels(page, '[data-key="space"]')
    for key in ("ArrowLeft", "ArrowUp", "+"):
        page.keyboard.press(key)
    settle(page)
    assert len({start, dragged, pixels(page, '[data-key="space"]')}) == 3
    page.keyboard.press("0")
    settle(page)
    assert pixels(page, '[data-key="space"]') == start


def test_a_click_on_an_atom_in_space_takes_the_slices_there(wide):
    page = wide.page
    page.get_by_role("button", name="along z").click()
    page.locator('[data-key="slice z"]').focus()
    page.keyboard.press("PageDown")
    settle(page)
    assert titles(page)[0] != 1.0
    # seen along z: x to the right, y up, Pt alone at (1.2, 0.8); the scale is that of the bar
    box = page.locator('[data-key="space"]').bounding_box()
    scale = page.evaluate(
        """() => { const box = document.querySelector('[data-key="space"]');
        const atoms = [[1.2, 0.8, 1.0], [-1.5, -1.6, -1.5], [-1, 1.5, -2], [0.5, -1.5, 0]];
        const centre = [0.0, -0.2, 0.0];
        const far = Math.max(...atoms.map(p => Math.hypot(...p.map((r, i) => r - centre[i]))));
        return Math.min(box.clientWidth, box.clientHeight) / (2.05 * 1.25 * far); }"""
    )
    spot = {"x": box["width"] / 2 + scale * 1.2, "y": box["height"] / 2 - scale * (0.8 + 0.2)}
    page.locator('[data-key="space"]').click(position=spot)
    settle(page)
    assert titles(page) == pytest.approx([1.0, 0.8, 1.2])


def test_surface_and_atoms_can_be_shown_apart_and_together(wide):
    page = wide.page
    shown = set()
    for kind in ("atoms", "surface", "both"):
        page.get_by_label("Show").select_option(kind)
        settle(page)
        shown.add(pixels(page, '[data-key="space"]'))
    assert len(shown) == 3
    before = pixels(page, '[data-key="space"]')
    page.locator('[data-key="surface"]').fill("1.5")
    settle(page)
    assert pixels(page, '[data-key="space"]') != before


def test_the_surface_of_a_ball_is_a_disk_of_its_size_from_every_side(chromium, tmp_path):
    shape, voxel, radius = (33, 29, 37), (0.5, 0.6, 0.4), 5.0
    z, y, x = np.meshgrid(
        *((np.arange(n) - n // 2) * v for n, v in zip(shape, voxel, strict=True)), indexing="ij"
    )
    write_mrc(tmp_path / "volume.mrc", np.clip(2 * radius - np.sqrt(z**2 + y**2 + x**2), 0, None), voxel)
    seen = Watched(chromium, write_report(tmp_path).as_uri())
    page = seen.page
    page.get_by_label("outline the slices").uncheck()
    reach = 0.5 * np.sqrt(sum((n * v) ** 2 for n, v in zip(shape, voxel, strict=True)))
    for side in ("along z", "along y", "along x", "oblique"):
        page.get_by_role("button", name=side).click()
        areas = []
        for level in (radius, 2 * radius):  # the second is never reached and leaves the box alone
            page.locator('[data-key="surface"]').evaluate(
                f"i => {{ i.step = 'any'; i.value = {level}; i.dispatchEvent(new Event('input')); }}"
            )
            settle(page)
            blue, size = page.locator('[data-key="space"]').evaluate(
                """c => { const copy = new OffscreenCanvas(c.width, c.height).getContext("2d");
                copy.drawImage(c, 0, 0);
                const p = copy.getImageData(0, 0, c.width, c.height).data; let n = 0;
                for (let i = 0; i < p.length; i += 4) n += p[i + 2] - p[i] > 12;
                return [n, Math.min(c.width, c.height)]; }"""
            )
            areas.append(blue)
        scale = size / (2.05 * 0.86 * reach)
        tolerance = 0.035 if side == "oblique" else 0.02  # edges of the box cross the oblique ball
        assert areas[0] - areas[1] == pytest.approx(np.pi * (radius * scale) ** 2, rel=tolerance)
    assert seen.errors == []
    seen.context.close()


def test_patterns_are_picked_by_position_and_read_pixel_by_pixel(wide, report):
    page = wide.page
    patterns = artefacts.read_patterns(report[2] / "patterns.h5")
    said = page.locator("[data-viewer=patterns] > .said")
    page.get_by_role("button", name="median").click()
    assert "median fit: tilt 1, position 7; loss 1;" in said.text_content()
    page.locator(".ring:not(.chosen)").click()
    assert "tilt 1, position 2; loss 3;" in said.text_content()
    measured = patterns["tilt_01_position_00002"]["measured"]
    assert f"{measured.sum():.0f} electrons measured, 1080 in the model" in said.text_content()
    page.wait_for_selector('.patterns[data-shows="tilt_01_position_00002"]')
    settle(page)
    first = page.locator(".pattern canvas").first
    box = first.bounding_box()
    row, column = 8, 2
    first.hover(
        position={"x": (column + 0.5) / 10 * box["width"], "y": (12 - row - 0.5) / 12 * box["height"]}
    )
    words = page.locator(".pattern .said").first.text_content()
    assert words == f"ky 2, kx −3: {measured[row, column]:.3g} e"
    page.locator('[data-key="pattern tilt"]').fill("0")
    assert "tilt 0, position" in said.text_content()
    map_ = page.locator('[data-key="pattern map"]')
    map_.focus()
    names = set()
    for key in ("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"):
        page.keyboard.press(key)
        names.add(said.text_content())
    assert len(names) == 2


def test_losses_are_read_point_by_point(wide):
    page = wide.page
    chart = page.locator('[data-key="loss ptychography"]')
    said = page.locator(".chart .said").first
    chart.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowUp"):
        page.keyboard.press(key)
    assert said.text_content() == "tilt 1, iteration 2: 2"
    page.evaluate("document.activeElement.blur()")
    assert said.text_content() == "noise floor 0.5 (dashed)"
    chart.hover(position={"x": 60, "y": 25})
    assert "iteration 1: 3" in said.text_content()


def test_a_finger_moves_the_crosshair_and_turns_the_specimen(chromium, report):
    seen = Watched(chromium, report[0], 400, has_touch=True, is_mobile=True)
    box = seen.page.locator('[data-key="slice z"]').bounding_box()
    seen.page.locator('[data-key="slice z"]').tap(position={"x": 3, "y": box["height"] - 3})
    settle(seen.page)
    assert titles(seen.page)[1:] == pytest.approx([-7 * VOXEL[1], -8 * VOXEL[2]])
    seen.page.locator('[data-key="space"]').tap()
    assert seen.errors == []
    seen.context.close()


def test_nothing_went_wrong_meanwhile(wide):
    assert wide.errors == []
