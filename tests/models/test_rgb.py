"""What the image processors fetch from addresses, with the code that a checkpoint contains."""

import http.server
import io
import threading

import numpy as np
import PIL.Image
import pytest

from revhrnet_hf.models import RevHRNetImageProcessor, RevHRNetImageProcessorPil


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        kind = self.path.rpartition("/")[2]
        self.send_response(302 if kind == "moved" else 200)
        if kind == "moved":
            self.send_header("Location", "ftp://127.0.0.1/secret")
        if kind == "huge":
            self.send_header("Content-Length", "100000001")
        self.end_headers()
        if self.path == "/am%20Stra%C3%9Fenrand" and self.headers["User-Agent"] == "revhrnet_hf":
            stream = io.BytesIO()
            PIL.Image.new("RGB", (3, 2), (1, 2, 3)).save(stream, "PNG")
            self.wfile.write(stream.getvalue())

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("processor_class", [RevHRNetImageProcessor, RevHRNetImageProcessorPil])
def test_images_of_addresses(processor_class, address):
    processor = processor_class(do_rescale=False, do_normalize=False)
    for given in (f"{address}/am Straßenrand", f"{address}/am%20Stra%C3%9Fenrand".replace("http", "Http")):
        [values] = processor(given)["pixel_values"]
        assert np.asarray(values)[:, 1, 2].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("path", "said"),
    [("moved", "[rR]edirect.* ftp://127.*only http and https"), ("huge", r"100\.0 MB, and more than 100 are not")],
)
def test_what_is_not_fetched(path, said, address):
    with pytest.raises(OSError, match=said):
        RevHRNetImageProcessor()(f"{address}/{path}")
