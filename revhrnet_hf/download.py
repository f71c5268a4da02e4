"""Fetches an image or a video by http or https: into memory, up to a limit of size and time, never from another scheme."""

import time
from http.client import HTTPException
from urllib import request
from urllib.error import HTTPError
from urllib.parse import urlsplit

from .defaults import MAX_DOWNLOAD
from .errors import DataError

SILENCE_SECONDS = 30.0  # without a byte
TOTAL_SECONDS = 600.0
CHUNK_BYTES = 1 << 16
SCHEMES = ("http", "https")
ADVICE = "fetch it yourself, and name the file (revhrnet predict: --max_download)"


class _WebRedirects(request.HTTPRedirectHandler):
    """Follows redirects to http and https; urllib alone would follow one to ftp too."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if urlsplit(newurl).scheme.lower() not in SCHEMES:
            raise DataError(f"{req.full_url} redirects to {newurl}, and only http and https are fetched")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> request.OpenerDirector:
    """As `urllib.request.build_opener`, without its handlers of file:, ftp: and data:."""
    opener = request.OpenerDirector()
    handlers = (
        request.ProxyHandler,
        request.HTTPHandler,
        request.HTTPSHandler,
        request.HTTPDefaultErrorHandler,
        request.HTTPErrorProcessor,
        _WebRedirects,
    )
    for handler in handlers:
        opener.add_handler(handler())
    return opener


def download(address: str, limit: float = MAX_DOWNLOAD, seconds: float | None = None) -> bytes:
    """The contents of an address.

    Args:
        address: begins with http:// or https://.
        limit: most megabytes.
        seconds: for the whole of it; None: `TOTAL_SECONDS`.

    Raises:
        DataError: it has another scheme, redirects to one, cannot be fetched, is larger than the limit or takes too long.
    """
    if address.partition(":")[0].lower() not in SCHEMES:
        raise DataError(f"{address} is not fetched: addresses begin with http:// or https://")
    seconds = TOTAL_SECONDS if seconds is None else seconds
    try:
        asked = request.Request(address, headers={"User-Agent": "revhrnet_hf"})
        with _opener().open(asked, timeout=min(SILENCE_SECONDS, seconds)) as response:
            return _read(response, address, limit, seconds)
    except HTTPError as error:
        raise DataError(f"{address} cannot be fetched: the server answers {error.code} {error.reason}") from error
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, DataError):
            raise
        reason = getattr(error, "reason", None) or error
        raise DataError(f"{address} cannot be fetched: {reason or type(error).__name__}") from error


def _read(response, address: str, limit: float, seconds: float) -> bytes:
    most, ends = int(limit * 1e6), time.monotonic() + seconds
    declared = response.headers.get("Content-Length")
    if declared is not None and declared.isdecimal() and int(declared) > most:
        raise DataError(f"{address} has {int(declared) / 1e6:.1f} MB, and more than {limit:g} are not fetched: {ADVICE}")
    data = bytearray()
    while chunk := response.read1(CHUNK_BYTES):
        data += chunk
        if len(data) > most:  # the server may have declared no size, or another
            raise DataError(f"{address} has more than {limit:g} MB, which are not fetched: {ADVICE}")
        if time.monotonic() > ends:
            raise DataError(f"{address} takes longer than {seconds:g} seconds: fetch it yourself, and name the file")
    if declared is not None and declared.isdecimal() and len(data) < int(declared):
        raise DataError(f"{address} cannot be fetched: the connection ended after {len(data)} of {declared} bytes")
    return bytes(data)
