"""What `pipeline("image-segmentation")` fetches and reads before Transformers sees it."""

import base64
import http.server
import io
import threading
import time

import numpy as np
import PIL.Image
import pytest

from revhrnet_hf.errors import DataError
from revhrnet_hf.pipelines import load_rgb

DEEP = np.arange(0, 65536, 1285, dtype=np.uint16)[:50].reshape(5, 10)
SHOWN = np.rint(DEEP / 257)


def png():
    stream = io.BytesIO()
    PIL.Image.fromarray(DEEP).save(stream, "PNG")
    return stream.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/absent":
            self.send_error(404)
            return
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        if self.path == "/image":
            self.wfile.write(png())
        elif self.path == "/text":
            self.wfile.write(b"hello")
        else:  # never ends
            self._pour(slowly=self.path == "/drip")

    def _pour(self, slowly):
        try:
            while not self.server.over.wait(0.02 if slowly else 0):
                self.wfile.write(b"x" if slowly else bytes(10_000))
        except OSError:
            pass  # the reader has had enough

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.over = threading.Event()
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.over.set()
        server.shutdown()


def test_an_address_is_read_as_a_file_is(server):
    for address in (f"{server}/image", f"{server}/image".replace("http", "HTTP")):
        assert np.array_equal(np.asarray(load_rgb(address))[..., 0], SHOWN)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/absent", "cannot be fetched: the server answers 404"),
        ("/elsewhere", "cannot be fetched"),
        ("/text", "cannot be read: its content is no image"),
        ("/flood", r"has more than 100 MB, which are not fetched: fetch it yourself"),
        ("/drip", r"takes longer than 0\.2 seconds"),
    ],
)
def test_what_is_not_fetched_is_named(server, path, message):
    started = time.monotonic()
    with pytest.raises(DataError, match=f"{path} {message}"):
        load_rgb(server + path, timeout=0.2 if path == "/drip" else None)
    assert time.monotonic() - started < 20


def test_nobody_listens():
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:1/a\.png cannot be fetched"):
        load_rgb("http://127.0.0.1:1/a.png")
    with pytest.raises(DataError, match="cannot be fetched"):
        load_rgb("http://[broken/a.png")


def test_base64_is_read_as_a_file_is():
    text = base64.encodebytes(png()).decode()  # with line ends
    for given in (text, text.replace("\n", ""), f"data:image/png;base64,{text}"):
        assert np.array_equal(np.asarray(load_rgb(given))[..., 0], SHOWN)


@pytest.mark.parametrize("text", ["absent.png", "", "photos12", base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0").decode(), "x" * 999])
def test_any_other_text_is_an_error(text):
    with pytest.raises(DataError, match="is neither an existing file, an http address, nor an image as base64") as caught:
        load_rgb(text)
    assert len(str(caught.value)) < 250


def test_what_is_no_text_is_left_to_transformers():
    array = np.zeros((2, 2, 3))
    assert load_rgb(array) is array
