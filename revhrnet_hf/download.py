"""Fetches an image or a video by http or https, with errors that the commands print; models/fetching.py does it."""

from .defaults import MAX_DOWNLOAD
from .errors import DataError
from .models.fetching import TOTAL_SECONDS, FetchError, TooLargeError, fetch


def download(address: str, limit: float = MAX_DOWNLOAD, seconds: float = TOTAL_SECONDS) -> bytes:
    """The contents of an address.

    Args:
        address: begins with http:// or https://.
        limit: most megabytes.
        seconds: for the whole of it.

    Raises:
        DataError: it has another scheme, redirects to one, cannot be fetched, is larger than the limit or takes too long.
    """
    try:
        return fetch(address, limit, seconds)
    except TooLargeError as error:
        raise DataError(f"{error} (revhrnet predict: --max_download)") from error
    except FetchError as error:
        raise DataError(str(error)) from error
