"""Seconds of a whole training step of each network, in turns, as ratios to a peer."""

from .networks import Step, add_network_arguments, build, settings_of, with_peer
from .timing import print_rows, take_turns

NETWORKS = ["rev-w48", "rev-w48+none", "rev-w48+modules", "hrnet-w48"]


def add_arguments(parser):
    add_network_arguments(parser, NETWORKS, height=256, width=512, batch=1)


def main(arguments) -> dict:
    size = (arguments.height, arguments.width)
    steps = {
        name: Step(
            build(name, arguments.classes, arguments.channels_last),
            arguments.batch, size, arguments.classes, arguments.device, arguments.precision,
        )
        for name in with_peer(arguments)
    }  # fmt: skip
    rows = take_turns(steps, arguments.peer, arguments.rounds, arguments.device)
    print_rows(rows, {"name": "", "seconds": ".3f", "ratio": ".3f"})
    return {"settings": settings_of(arguments), "train": rows}
