"""One module for each source of data: where a publisher's, or one's own, files lie, and what their ids mean."""
