"""A lower limit of each network's time on this machine, with the same multiply-adds: how much faster it could become.

The floor is the time of a network's multiply-adds at the best rate that a single 3×3 convolution with the network's own shapes
reaches. Convolutions and matrix products are counted, in the forward pass and, with `--train`, in the backward pass. The table
also has the share of the time that is spent in convolutions, by torch's profiler. Ratios are to the peer's whole time. Without
other arithmetic, no more than the difference between `ratio` and `floor ratio` can be gained. This is for CPUs only.
"""

import torch
import torch.nn.functional as F
from torch.autograd.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from .infer import make_call
from .networks import Step, add_network_arguments, build, settings_of, with_peer
from .timing import print_rows, seconds, take_turns

NETWORKS = ["rev-w48", "rev-w48+optimized", "hrnet-w48", "hrnet-w48+optimized"]
STREAMS = [(48, 4), (96, 8), (192, 16), (384, 32)]  # channels and stride


def add_arguments(parser):
    add_network_arguments(parser, NETWORKS, height=512, width=1024, batch=1)
    parser.set_defaults(device="cpu")
    parser.add_argument("--train", action="store_true", help="measure a whole training step instead of a forward pass")


def main(arguments) -> dict:
    size = (arguments.height, arguments.width)
    pixel_values = torch.randn(arguments.batch, 3, *size, device=arguments.device)
    settings = (arguments.batch, size, arguments.classes, arguments.device, arguments.precision)
    calls = {
        name: Step(build(name, arguments.classes), *settings) if arguments.train else make_call(name, pixel_values, arguments)
        for name in with_peer(arguments)
    }
    with torch.inference_mode(not arguments.train):
        rows = take_turns(calls, arguments.peer, arguments.rounds, arguments.device)
        best = max(rate(channels, stride, arguments) for channels, stride in STREAMS)
        for row in rows:
            row["G madds"] = multiply_adds(calls[row["name"]]) / 1e9
            row["in convolutions"] = share_of_convolutions(calls[row["name"]])
            row["floor"] = row["G madds"] * 1e9 / best
            row["floor ratio"] = row["floor"] / rows[0]["seconds"]
    print(f"best rate of one convolution: {best / 1e9:.0f} G multiply-adds a second, {torch.get_num_threads()} threads")
    columns = {"seconds": ".3f", "ratio": ".3f", "G madds": ".1f", "in convolutions": ".0%", "floor": ".3f", "floor ratio": ".3f"}
    print_rows(rows, {"name": "", **columns})
    return {"settings": settings_of(arguments), "best_rate": best, "floor": rows}


def rate(channels: int, stride: int, arguments) -> float:
    """Multiply-adds per second of a 3×3 convolution of a stream, the best of 20 calls."""
    x = torch.randn(arguments.batch, channels, arguments.height // stride, arguments.width // stride, device=arguments.device)
    x = x.to(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3, device=arguments.device).to(memory_format=torch.channels_last)
    times = [seconds(lambda: F.conv2d(x, weight, padding=1), arguments.device) for _ in range(20)]
    return x.numel() * channels * 9 / min(times)


def multiply_adds(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() // 2


def share_of_convolutions(call) -> float:
    with profile(use_kineto=False) as profiler:  # the Kineto library writes its own log to the terminal
        call()
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    return sum(event.self_cpu_time_total for event in events if "convolution" in event.key) / total
