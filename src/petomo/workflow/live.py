"""The report of a run in progress, served to this machine's own browsers and nobody else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from petomo.analysis.report import ReportPage
from petomo.core.errors import UserError
from petomo.workflow.callbacks import LOG

_HOST = "127.0.0.1"
_NAMES = ("127.0.0.1", "localhost")  # a page elsewhere whose name resolves to this machine is turned away


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True  # a port whose last connections are still closing

    def __init__(self, folder: Path, port: int):
        super().__init__((_HOST, port), _Handler)
        self._page, self._lock = ReportPage(folder, live=True), threading.Lock()
        self._stamp, self._body = "", b""

    def page(self, known: str) -> tuple[str, bytes | None]:
        """The page's tag, and its bytes unless the tag is the one that is known already."""
        with self._lock:
            stamp = f'"{self._page.stamp()}"'
            if stamp == known:
                return stamp, None
            if stamp != self._stamp:
                self._body = self._page.render().encode("utf-8")
                self._stamp = stamp
            return stamp, self._body


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "petomo"
    sys_version = ""
    timeout = 30

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        host = (self.headers.get("Host") or "").rpartition(":")[0]
        if host not in _NAMES:
            self.send_error(403)
        elif self.path != "/":
            self.send_error(404)
        else:
            try:
                tag, body = self.server.page(self.headers.get("If-None-Match", ""))
            except Exception as error:  # a page that fails must not take the run with it
                LOG.debug("live page: failed", exc_info=True)
                self.send_error(500, explain=f"The page could not be made: {type(error).__name__}")
                return
            self._send(tag, body, with_body)

    def _send(self, tag: str, body: bytes | None, with_body: bool) -> None:
        self.send_response(304 if body is None else 200)
        self.send_header("ETag", tag)
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        if body is not None:
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body is not None and with_body:
            self.wfile.write(body)

    def handle(self) -> None:
        with suppress(ConnectionError, TimeoutError):  # the browser went away
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        """Requests are nobody's news."""


@contextmanager
def live_page(folder: str | Path, port: int) -> Iterator[str]:
    """Serve the report of a run folder while the block runs.

    Only that page, made anew from the artefacts at hand when a browser asks and something has changed, and
    only on the loopback address.

    Parameters
    ----------
    folder : path
        Run folder; it need not be there yet.
    port : int
        TCP port; 0 takes a free one.

    Yields
    ------
    str
        The page's address.

    Raises
    ------
    UserError
        If the port cannot be had.
    """
    try:
        server = _Server(Path(folder), port)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(
            f"--live {port}: this port cannot be used ({why}); give another, or 0 for a free one"
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="live page", daemon=True)
    thread.start()
    try:
        yield f"http://{_HOST}:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
