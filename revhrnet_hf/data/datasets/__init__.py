"""One module for each source of data: the layout of its files and the meaning of its ids."""
