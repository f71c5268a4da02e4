"""Seconds of a forward pass of each network, in turns, as ratios to a peer that runs in eager mode.

A name may end in `+optimized` (`optimize_for_inference()`, for our networks only), `+compiled` (`torch.compile`, which takes
minutes to start) or `+onnx` (ONNX Runtime; on the CPU, in float32).
"""

import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

from revhrnet_hf.errors import RecipeError

from .networks import add_network_arguments, build, logits_of, settings_of, with_peer
from .timing import print_rows, take_turns

NETWORKS = ["rev-w48", "rev-w48+optimized", "hrnet-w48", "hrnet-w48+optimized"]


def add_arguments(parser):
    add_network_arguments(parser, NETWORKS, height=512, width=1024, batch=1)


def main(arguments) -> dict:
    pixel_values = torch.randn(arguments.batch, 3, arguments.height, arguments.width, device=arguments.device)
    calls = {name: make_call(name, pixel_values, arguments) for name in with_peer(arguments)}
    is_bf16 = arguments.precision == "bf16"
    precision = torch.autocast(pixel_values.device.type, torch.bfloat16) if is_bf16 else nullcontext()
    with torch.inference_mode(), precision:
        rows = take_turns(calls, arguments.peer, arguments.rounds, arguments.device)
    for row in rows:
        row["images/s"] = arguments.batch / row["seconds"]
    print_rows(rows, {"name": "", "seconds": ".3f", "ratio": ".3f", "images/s": ".2f"})
    return {"settings": settings_of(arguments), "infer": rows}


def make_call(name: str, pixel_values: torch.Tensor, arguments) -> Callable[[], object]:
    network, _, mode = name.partition("+")
    model = build(network, arguments.classes, arguments.channels_last).to(arguments.device).eval()
    if mode == "optimized":
        if not hasattr(model, "optimize_for_inference"):
            raise RecipeError(f"{network} has no optimize_for_inference(): only our networks have it")
        model.optimize_for_inference()
    elif mode == "compiled":
        model.compile()
    elif mode == "onnx":
        return onnx_call(model, pixel_values)
    elif mode:
        raise RecipeError(f"Unknown {name!r}: the name of a network may be followed by +optimized, +compiled or +onnx")
    return lambda: logits_of(model, pixel_values)


class Logits(torch.nn.Module):
    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return logits_of(self.model, pixel_values)


def onnx_call(model: torch.nn.Module, pixel_values: torch.Tensor) -> Callable[[], object]:
    try:
        import onnxruntime
    except ImportError as error:
        raise RecipeError("+onnx needs pip install -c constraints.txt -e .[benchmark]") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(Logits(model).eval(), (pixel_values,), path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: pixel_values.numpy()}
    return lambda: session.run(None, inputs)
