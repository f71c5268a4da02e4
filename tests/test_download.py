"""Downloads from a server on this machine: what it may send, and what is refused."""

import http.server
import threading
import time
from contextlib import nullcontext, suppress
from types import SimpleNamespace

import pytest

from revhrnet_hf.download import download
from revhrnet_hf.errors import DataError
from revhrnet_hf.models import fetching

BODY = bytes(range(256)) * 20  # 5,120 bytes


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        kind = self.path.rpartition("/")[2]
        getattr(self, f"send_{kind}", self.send_missing)()

    def send_plain(self, length=5120):
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(BODY)

    def send_endless(self):
        self.send_response(200)
        self.end_headers()
        try:
            for _ in range(10_000):
                self.wfile.write(BODY)
        except OSError:
            self.server.gave_up.set()

    def send_undeclared(self):
        self.send_plain(length=None)

    def send_cut(self):
        self.send_plain(length=2 * len(BODY))

    def send_slow(self):
        self.send_response(200)
        self.end_headers()
        with suppress(OSError):
            for byte in BODY[:50]:
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)

    def send_echo(self):
        """What was asked for, and by whom."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{self.headers['User-Agent']} {self.headers['Host'].partition(':')[0]} {self.path}".encode())

    def send_silent(self):
        time.sleep(1)

    def send_missing(self):
        self.send_error(404)

    def redirect(self, target):
        self.send_response(302)
        self.send_header("Location", target)
        self.end_headers()

    def send_moved(self):
        self.redirect("/plain")

    def send_circle(self):
        self.redirect("/circle")

    def send_to_file(self):
        self.redirect(f"file://{self.server.secret}")

    def send_to_ftp(self):
        self.redirect("ftp://127.0.0.1/secret")

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    secret = tmp_path_factory.mktemp("secret") / "secret"
    secret.write_text("secret")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.secret, server.gave_up = secret, threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("Straße am Meer/echo", "/Stra%C3%9Fe%20am%20Meer/echo"),
        ("a%20b/echo", "/a%20b/echo"),
        ("a?of=größe&x=1&y=%C3%9F+/echo", "/a?of=gr%C3%B6%C3%9Fe&x=1&y=%C3%9F+/echo"),
    ],
)
def test_addresses_are_escaped_once(server, path, asked):
    assert download(f"{server.url}/{path}").decode() == f"revhrnet_hf 127.0.0.1 {asked}"
    assert download(f"{server.url.replace('http', 'HTTP')}/{path}").decode().endswith(asked)


@pytest.mark.parametrize("host", ["bücher.example", "me@bücher.example:80"])
def test_hosts_have_their_name_by_idna(host, monkeypatch):
    asked = []
    monkeypatch.setattr(fetching, "_read", lambda *_: b"")
    monkeypatch.setattr(fetching, "_opener", lambda: SimpleNamespace(open=lambda it, timeout: asked.append(it) or nullcontext()))
    download(f"http://{host}/ä.png")
    assert asked[0].full_url == f"http://{host.replace('bücher', 'xn--bcher-kva')}/%C3%A4.png"


@pytest.mark.parametrize("path", ["plain", "undeclared", "moved"])
def test_contents(server, path):
    assert download(f"{server.url}/{path}") == BODY


def test_exactly_the_limit_is_fetched_and_a_byte_more_is_not(server):
    limit = len(BODY) / 1e6
    assert download(f"{server.url}/undeclared", limit) == BODY
    for path in ("plain", "undeclared"):
        with pytest.raises(DataError, match=rf"/{path} has .*not fetched: fetch it yourself.*--max_download"):
            download(f"{server.url}/{path}", limit - 1e-6)


def test_an_endless_answer_is_not_read_to_its_end(server):
    with pytest.raises(DataError, match=r"more than 0\.1 MB"):
        download(f"{server.url}/endless", 0.1)
    assert server.gave_up.wait(10)


@pytest.mark.parametrize("target", ["file", "ftp"])
def test_redirects_to_other_schemes_are_refused(server, target):
    with pytest.raises(
        DataError, match=rf"/to_{target} .*[rR]edirect(s|ion) to (url .)?{target}://.*(only http and https|not allowed)"
    ):
        download(f"{server.url}/to_{target}")


@pytest.mark.parametrize(
    ("path", "reason"), [("absent", "404"), ("cut", "after 5120 of 10240 bytes|IncompleteRead"), ("circle", "302")]
)
def test_bad_answers_are_one_error(server, path, reason):
    with pytest.raises(DataError, match=rf"/{path} cannot be fetched: .*({reason})"):
        download(f"{server.url}/{path}")


def test_time_is_limited(server, monkeypatch):
    monkeypatch.setattr(fetching, "SILENCE_SECONDS", 0.3)
    with pytest.raises(DataError, match=r"silent cannot be fetched: .*timed out"):
        download(f"{server.url}/silent")
    with pytest.raises(DataError, match=r"slow takes longer than 0\.4 seconds"):
        download(f"{server.url}/slow", seconds=0.4)


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:image/png;base64,AA", "/etc/passwd"])
def test_other_schemes_are_never_opened(address):
    with pytest.raises(DataError, match="is not fetched"):
        download(address)


def test_nobody_there():
    with pytest.raises(DataError, match=r"cannot be fetched: .*refused"):
        download("http://127.0.0.1:1/x.png")
