"""The page that follows a run: loopback only, nothing but the page, new when the run has news."""

import http.client
import socket
import sys
import threading
from urllib.parse import urlsplit

import pytest

from petomo.cli import main
from petomo.core.errors import UserError
from petomo.io.metrics import append_metrics
from petomo.workflow.live import live_page
from report_runs import Watched, browser, make_run


@pytest.fixture
def run(tmp_path):
    make_run(tmp_path)
    return tmp_path


def ask(address, path="/", method="GET", **headers):
    """Status, headers and body of a request."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.request(
        method, path, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    answer = connection.getresponse()
    out = answer.status, dict(answer.getheaders()), answer.read().decode()
    connection.close()
    return out


def test_only_the_page_is_served_and_only_by_its_own_name(run):
    (run / "secret.txt").write_text("secret")
    with live_page(run, 0) as address:
        assert address.startswith("http://127.0.0.1:")
        status, headers, body = ask(address)
        assert status == 200
        assert headers["Content-Type"] == "text/html; charset=utf-8"
        assert "connect-src 'self'" in body
        assert 'data-live="yes"' in body
        for path in (
            "/secret.txt",
            "/volume.mrc",
            "/../secret.txt",
            "/%2e%2e/secret.txt",
            "//secret.txt",
            "/?a",
            "/report.html",
        ):
            status, _, answer = ask(address, path)
            assert status == 404
            assert "secret\n" not in answer
        port = urlsplit(address).port
        assert ask(address, Host=f"localhost:{port}")[0] == 200
        for name in (f"elsewhere.example:{port}", f"127.0.0.1.elsewhere.example:{port}", ""):
            assert ask(address, Host=name)[0] == 403
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            assert ask(address, method=method)[0] == 501
        assert ask(address, method="HEAD")[::2] == (200, "")
    with pytest.raises(ConnectionRefusedError):
        ask(address)


def test_nothing_listens_beyond_loopback(run):
    with live_page(run, 0) as address, socket.socket() as other:
        other.bind(("127.0.0.2", urlsplit(address).port))  # taken, if the page listened everywhere


def test_an_unchanged_page_is_not_sent_again(run):
    with live_page(run, 0) as address:
        _, headers, body = ask(address)
        status, again, empty = ask(address, If_None_Match=headers["ETag"])
        assert (status, again["ETag"], empty) == (304, headers["ETag"], "")
        append_metrics(run / "metrics.jsonl", {"stage": "analysis", "iteration": 1, "loss": 42.25})
        status, changed, fresh = ask(address, If_None_Match=headers["ETag"])
        assert status == 200
        assert changed["ETag"] != headers["ETag"]
        assert "42.25" in fresh
        assert "42.25" not in body


def test_a_run_that_has_not_begun_has_a_page(tmp_path):
    with live_page(tmp_path / "later", 0) as address:
        status, _, body = ask(address)
        assert status == 200
        assert "summary.json is not there yet" in body
        assert not (tmp_path / "later").exists()
        make_run_in = tmp_path / "later"
        make_run_in.mkdir()
        make_run(make_run_in)
        assert "123\u202f000 e/Å²" in ask(address)[2]


def test_a_port_in_use_is_a_sentence(run, capsys, monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(UserError, match=rf"--live {port}: this port cannot be used .*give another"),
            live_page(run, port),
        ):
            pass
        config = tmp_path / "some.yaml"
        (tmp_path / "data").mkdir()
        config.write_text("name: x\ndata: {root: data, tilts: 'tilt_*.h5'}\n")
        monkeypatch.setattr(
            sys, "argv", ["petomo", "run", str(config), "--out", str(tmp_path / "out"), "--live", str(port)]
        )
        with pytest.raises(SystemExit, match="2"):
            main()
    assert f"--live {port}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_thread_is_left(run):
    before = set(threading.enumerate())
    with live_page(run, 0) as address:
        ask(address)
        assert any(thread.name == "live page" for thread in threading.enumerate())
    assert {thread for thread in threading.enumerate() if thread.name == "live page"} <= before


def test_the_open_page_follows_without_moving(run):
    with browser() as chromium:
        with live_page(run, 0) as address:
            seen = Watched(chromium, address)
            page = seen.page
            page.locator("summary").click()
            canvas = page.locator('[data-key="slice z"]')
            canvas.click(position={"x": 30, "y": 30})
            page.wait_for_timeout(100)
            place, top = page.locator(".slice h3").all_text_contents(), canvas.bounding_box()["y"]
            for i in range(9):
                append_metrics(
                    run / "metrics.jsonl",
                    {"stage": "analysis", "iteration": i, "loss": 42.25 - i, "tilt": i % 2},
                )
            page.get_by_text("analysis, tilt 0: iteration 8, loss 34.25").wait_for(timeout=30000)
            page.wait_for_selector('[data-key="loss analysis"]')
            page.wait_for_timeout(300)
            assert page.locator(".slice h3").all_text_contents() == place
            assert canvas.bounding_box()["y"] == pytest.approx(top, abs=2)
            assert page.evaluate("document.activeElement.dataset.key") == "slice z"
            (run / "volume.mrc").touch()  # the section is made anew, and the crosshair stays
            page.evaluate("document.querySelector('#slices').dataset.hash = 'old'")
            append_metrics(run / "metrics.jsonl", {"stage": "analysis", "iteration": 9, "loss": 1.5})
            page.get_by_text("analysis: iteration 9, loss 1.5").wait_for(timeout=30000)
            page.wait_for_selector("#slices [data-ready=yes]")
            page.wait_for_timeout(300)
            assert page.locator(".slice h3").all_text_contents() == place
            assert page.evaluate("document.activeElement.dataset.key") == "slice z"
            assert page.locator("details[open]").count() == 1
            assert seen.errors == []
        page.get_by_text("no longer live").wait_for(timeout=30000)
