"""`python -m revhrnet_hf.commands COMMAND …` is `revhrnet COMMAND …`."""

from .main import console

console()
