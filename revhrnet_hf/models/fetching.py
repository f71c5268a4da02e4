"""Fetches an address on the web: by http or https only, into memory, up to a limit of size and time.

It is in this folder because a checkpoint contains it together with the image processors, which read images from addresses too.
"""

import string
import time
from http.client import HTTPException
from urllib import request
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit

SCHEMES = ("http", "https")
MOST_MEGABYTES = 100.0
SILENCE_SECONDS = 30.0  # without a byte
TOTAL_SECONDS = 600.0
CHUNK_BYTES = 1 << 16
ADVICE = "fetch it yourself, and name the file"


class FetchError(OSError):
    """An address cannot be fetched, or may not be; the message names it and says why."""


class TooLargeError(FetchError):
    """What is at an address is larger than the limit."""


def is_address(text: str) -> bool:
    """Whether a text is an address that can be fetched: it begins with http:// or https://, in any letters."""
    scheme, mark, _ = text.partition("://")
    return bool(mark) and scheme.lower() in SCHEMES


def fetch(address: str, limit: float = MOST_MEGABYTES, seconds: float = TOTAL_SECONDS) -> bytes:
    """The contents of an address.

    Args:
        address: begins with http:// or https://. Letters outside ASCII and spaces are escaped; escapes in it stay as they are.
        limit: most megabytes.
        seconds: for the whole of it.

    Raises:
        TooLargeError: it is larger than the limit.
        FetchError: it has another scheme, redirects to one, cannot be fetched or takes too long.
    """
    if not is_address(address):
        raise FetchError(f"{address} is not fetched: addresses begin with http:// or https://")
    try:
        asked = request.Request(_escaped(address), headers={"User-Agent": "revhrnet_hf"})
        with _opener().open(asked, timeout=min(SILENCE_SECONDS, seconds)) as response:
            return _read(response, address, limit, seconds)
    except FetchError:
        raise
    except HTTPError as error:
        raise FetchError(f"{address} cannot be fetched: the server answers {error.code} {error.reason}") from error
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise FetchError(f"{address} cannot be fetched: {reason or type(error).__name__}") from error


def _escaped(address: str) -> str:
    """The address in ASCII, as browsers send it."""
    parts = urlsplit(address)
    user, at, host = parts.netloc.rpartition("@")
    host = host if host.isascii() else host.encode("idna").decode("ascii")
    # All punctuation is kept, as urllib does it for redirects: the address may be escaped already.
    return quote(parts._replace(netloc=f"{user}{at}{host}").geturl(), safe=string.punctuation)


class _WebRedirects(request.HTTPRedirectHandler):
    """Follows redirects to http and https; urllib alone would follow one to ftp too."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if not is_address(newurl):
            raise FetchError(f"{req.full_url} redirects to {newurl}, and only http and https are fetched")
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


def _read(response, address: str, limit: float, seconds: float) -> bytes:
    most, ends = int(limit * 1e6), time.monotonic() + seconds
    declared = response.headers.get("Content-Length")
    if declared is not None and declared.isdecimal() and int(declared) > most:
        raise TooLargeError(f"{address} has {int(declared) / 1e6:.1f} MB, and more than {limit:g} are not fetched: {ADVICE}")
    data = bytearray()
    while chunk := response.read1(CHUNK_BYTES):
        data += chunk
        if len(data) > most:  # the server may have declared no size, or another
            raise TooLargeError(f"{address} has more than {limit:g} MB, which are not fetched: {ADVICE}")
        if time.monotonic() > ends:
            raise FetchError(f"{address} takes longer than {seconds:g} seconds: {ADVICE}")
    if declared is not None and declared.isdecimal() and len(data) < int(declared):
        raise FetchError(f"{address} cannot be fetched: the connection ended after {len(data)} of {declared} bytes")
    return bytes(data)
