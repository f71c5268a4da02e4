"""`python -m revhrnet_hf COMMAND …` is `revhrnet COMMAND …`."""

from .commands.main import console

console()
