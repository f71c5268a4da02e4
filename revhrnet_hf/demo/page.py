"""The demo page, built on Gradio: it segments an image with one checkpoint, or with two side by side."""

import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import gradio as gr
from PIL import Image
from transformers.image_utils import SizeDict

from ..errors import DataError, RecipeError, RevHRNetError
from ..evaluation import InferenceSettings, load_for_inference, segment
from ..evaluation.sliding import window_starts
from ..hub.examples import own_examples
from ..images import Colour, header_size, read_image, save_image, unreadable_is_data_error
from ..models.image_processing_pil_revhrnet import resized_size
from ..synthetic import draw_scenes
from ..training.recipe import Recipe
from ..viz.figures import names_and_palette, untinted_of
from .result import Answer, error_html, results_html

# Limits of one visitor's request. A W18 network takes some 250 bytes of memory for each pixel of a whole image.
MOST_MEGABYTES = 30  # of an uploaded file
MOST_MEGAPIXELS = 50  # of an image; phones make 12 to 48, Mapillary Vistas' largest have 22
MOST_EDGE = 16384  # pixels of the longer side
WHOLE_MEGAPIXELS = 8  # larger images are shown to the network at this size
MOST_WINDOWS = 256  # of one image
MOST_SECONDS = 120  # for one answer, after which no further window is begun
MOST_WAITING = 16  # requests in the queue

WHOLE, SLIDING = "Whole image", "Sliding window"
KEPT_SECONDS = 3600  # how long an uploaded image stays on the server

INTRODUCTION = """## What is where in this image?
Drop an image to see the class of each pixel. Point at the result (on a phone, tap it) to read the class, and how sure the
network is. The boxes of the legend turn classes on and off."""

HERE = Path(__file__).parent
WAITING = '<p class="seg-foot">The classes will be shown here.</p>'


@dataclass(frozen=True)
class Segmenter:
    """A checkpoint ready to be tried.

    Attributes:
        title: its name on the page.
        model, image_processor: as `load_checkpoint` gives them.
        names, palette: name and colour of each class id.
        untinted: ids of the classes that are not coloured at first.
        examples: files of the images that came with it.
    """

    title: str
    model: object
    image_processor: object
    names: list[str]
    palette: Sequence[Colour]
    untinted: frozenset[int] = frozenset()
    examples: Sequence[Path] = ()


def image_input() -> gr.Image:
    """An upload that arrives as a file, whatever is in it.

    Gradio's own decoding clips 16-bit images, and reports a broken file as an error without a reason. (This is not a sub-class,
    because Gradio writes a `.pyi` beside the module of each.)
    """
    image = gr.Image(label="Image", sources=["upload", "clipboard"], height=260, elem_id="image")
    image.preprocess = lambda upload: None if upload is None else upload.path
    return image


def load_segmenter(
    checkpoint: str | Path, device: str = "cpu", trust_remote_code: bool = False, compiled: bool = False
) -> Segmenter:
    """Load a checkpoint for the page.

    Args:
        checkpoint: a folder written by `save_pretrained`, or a name on the Hub.
        device: where the model runs.
        trust_remote_code: run Python files that come with it; see `load_checkpoint`.
        compiled: compile the model; see `load_for_inference`.

    Raises:
        CheckpointError: it cannot be loaded, or its classes cannot be shown.
        RecipeError: it is to be compiled, and no compiler works.
    """
    model, image_processor = load_for_inference(checkpoint, device, trust_remote_code=trust_remote_code, compiled=compiled)
    names, palette = names_and_palette(model.config)
    folder = Path(checkpoint)
    title = "/".join(folder.resolve().parts[-2:]) if folder.is_dir() else str(checkpoint)
    examples = own_examples(checkpoint)
    return Segmenter(title, model, image_processor, names, palette, untinted_of(model.config), examples)


def answers_to(segmenters: Sequence[Segmenter], path: str | None, how: str, height: int | None, width: int | None) -> list[str]:
    """The HTML that the page shows, one piece for each checkpoint: its answer, or the user's error."""
    if path is None:
        return [WAITING] * len(segmenters)
    try:
        if how == SLIDING and None in (height, width):
            raise RecipeError("give the window a height and a width")
        settings = InferenceSettings(window=(height, width) if how == SLIDING else None)
        return results_html([answer(segmenter, path, settings) for segmenter in segmenters])
    except RevHRNetError as error:
        return [error_html(str(error))] * len(segmenters)


def answer(segmenter: Segmenter, path: str | Path, settings: InferenceSettings) -> Answer:
    """A checkpoint's answer to an image file.

    Raises:
        DataError: the file is no image, or one that is too large for the page.
        RecipeError: the windows are too many, or take too long.
    """
    image = open_upload(path)
    size = (image.height, image.width)
    seen = image if settings.window else reduced(image)
    check_windows(size_in_network(segmenter.image_processor, size), settings)
    with time_limit(segmenter.model):
        found = segment(segmenter.model, segmenter.image_processor, seen, settings, target_size=size, return_confidence=True)
    note = f"; the network saw it at {seen.width} × {seen.height} pixels" if seen.size != image.size else ""
    return Answer(
        segmenter.title,
        image,
        found.label_map,
        found.confidence,
        segmenter.names,
        segmenter.palette,
        segmenter.untinted,
        Path(path).name,
        note,
    )


def reduced(image: Image.Image) -> Image.Image:
    """The image, scaled down to `WHOLE_MEGAPIXELS` if it has more."""
    factor = (WHOLE_MEGAPIXELS * 1e6 / (image.width * image.height)) ** 0.5
    if factor >= 1:
        return image
    return image.resize([max(1, int(edge * factor)) for edge in image.size], Image.Resampling.BILINEAR, reducing_gap=2.0)


def size_in_network(image_processor, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of an image of `size` as the network sees it: windows are cut out of that."""
    return resized_size(size, SizeDict(**dict(image_processor.size))) if image_processor.do_resize else size


def check_windows(size: tuple[int, int], settings: InferenceSettings) -> None:
    """Raise a RecipeError if an image of `size` (height, width) in the network takes more windows than a visitor may have."""
    if settings.window is None:
        return
    edges = zip(size, settings.window, settings.steps, strict=True)
    down, across = (len(window_starts(length, min(window, length), step)) for length, window, step in edges)
    if down * across > MOST_WINDOWS:
        raise RecipeError(
            f"this image, which the network sees at {size[1]}×{size[0]} pixels, takes {down * across:,} windows of this size; "
            f"this page takes up to {MOST_WINDOWS}: give larger windows"
        )


@contextmanager
def time_limit(model) -> Iterator[None]:
    """Raise a RecipeError before the first forward pass that begins after `MOST_SECONDS`."""
    end = time.monotonic() + MOST_SECONDS

    def check(*_) -> None:
        if time.monotonic() > end:
            raise RecipeError(f"this took longer than the {MOST_SECONDS} s that the page gives an image: give larger windows")

    handle = model.register_forward_pre_hook(check)
    try:
        yield
    finally:
        handle.remove()


def open_upload(path: str | Path) -> Image.Image:
    """An image as a viewer shows it, RGB.

    Raises:
        DataError: the file is no image or has too many pixels; the message has the file's name, not its place on the server.
    """
    path = Path(path)
    try:
        check_pixels(path)
        return read_image(path)
    except DataError as error:
        raise DataError(str(error).replace(str(path), path.name)) from error


def check_pixels(path: Path) -> None:
    """Raise a DataError if an image has too many pixels, before they are read."""
    with unreadable_is_data_error("Image", str(path)), path.open("rb") as file:
        width, height = header_size(file)
    megapixels, edge = width * height / 1e6, max(width, height)
    if megapixels > MOST_MEGAPIXELS:
        raise DataError(f"{path.name} has {megapixels:.0f} megapixels; this page takes up to {MOST_MEGAPIXELS}: make it smaller")
    if edge > MOST_EDGE:
        raise DataError(f"{path.name} is {edge} pixels long; this page takes up to {MOST_EDGE}: cut it, or make it smaller")


def default_window(segmenters: Sequence[Segmenter]) -> tuple[int, int]:
    """(height, width) of the crops that the first checkpoint was trained on, if it records them."""
    history = getattr(segmenters[0].model.config, "training_history", None) or [{}]
    recorded = history[-1].get("recipe")
    if recorded is None:
        return 512, 512
    return tuple(recorded.get("crop_size") or Recipe(dataset="camvid").crop_size)  # a record leaves out what is the default


def drawn_examples(folder: Path, count: int = 2) -> list[Path]:
    """Write drawn street scenes to `folder`, as example images."""
    paths = [folder / f"drawn_street_{number + 1}.png" for number in range(count)]
    for path, scene in zip(paths, draw_scenes("val", count, (360, 480), seed=0), strict=True):
        save_image(Image.fromarray(scene.image), path)
    return paths


def build_page(segmenters: Sequence[Segmenter], examples: Sequence[str | Path] = ()) -> gr.Blocks:
    """The page for one checkpoint, or two side by side.

    Args:
        segmenters: the checkpoints.
        examples: image files to choose from. By default those that came with the checkpoints, else two drawn street scenes, in a
            folder that is removed with the page.
    """
    drawn, examples = None, list(examples) or [path for segmenter in segmenters for path in segmenter.examples]
    if not examples:
        drawn = TemporaryDirectory(prefix="revhrnet_examples_")
        examples = drawn_examples(Path(drawn.name))
    examples = [str(path) for path in examples]
    height, width = default_window(segmenters)
    with gr.Blocks(title="Semantic segmentation", analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=1, min_width=280, elem_classes="seg-inputs"):
                image = image_input()
                gr.Examples(examples, image, label="Or choose one")
                with gr.Column(elem_classes="seg-settings"):
                    how = gr.Radio([WHOLE, SLIDING], value=WHOLE, label="How the network sees it", elem_id="how")
                    with gr.Row(visible=False, elem_id="window") as window:
                        sizes = [gr.Number(height, label="Window height", precision=0, minimum=32, min_width=100)]
                        sizes.append(gr.Number(width, label="Window width", precision=0, minimum=32, min_width=100))
                    again = gr.Button("Segment", variant="primary", elem_id="segment")
            with gr.Column(scale=3, min_width=300, elem_classes="seg-answers"), gr.Row(elem_classes="seg-pair"):
                results = [gr.HTML(WAITING, min_width=300, padding=False) for _ in segmenters]

        def show(path, how, height, width):
            answers = answers_to(segmenters, path, how, height, width)
            return answers if len(answers) > 1 else answers[0]

        how.change(lambda how: gr.Row(visible=how == SLIDING), how, window, api_visibility="private")
        gr.on(
            [image.change, how.change, again.click, *[size.submit for size in sizes]],
            show,
            [image, how, *sizes],
            results,
            concurrency_limit=1,
            trigger_mode="always_last",
            api_visibility="private",
        )
    page.drawn_examples = drawn  # removed with the page, or when the program ends
    return page.queue(max_size=MOST_WAITING)


def serve(page: gr.Blocks, host: str | None = "127.0.0.1", port: int | None = None) -> None:
    """Serve the page until Ctrl-C or SIGTERM; it fetches nothing from elsewhere.

    Args:
        page: of `build_page`.
        host: address to listen on; None: the one that the environment of a Space gives.
        port: None: the first free one from 7860 on.

    Raises:
        RecipeError: the host is no address of this machine, or the port is not free.
    """
    check_address(host or "127.0.0.1", port)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        max_file_size=f"{MOST_MEGABYTES}mb",
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=(HERE / "page.css").read_text(encoding="utf-8"),
        head=f"<script>{(HERE / 'page.js').read_text(encoding='utf-8')}</script>",
        footer_links=[],
        ssr_mode=False,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
    )
    # An orderly end, in which temporary files are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    print(f"The page is at {address} (Ctrl-C ends it)", flush=True)
    try:
        page.block_thread()
    finally:
        page.close()


def check_address(host: str, port: int | None = None) -> None:
    """Raise a RecipeError unless this machine can listen on `host`, and on `port` if one is given.

    Gradio would fail too, but on each of a hundred ports, or leave a process that does not end.
    """
    try:
        _listen(host, 0)
    except (OSError, UnicodeError) as error:
        raise RecipeError(
            f"--host {host} is no address of this machine ({error}): give one of its own, 127.0.0.1 for this machine only, or "
            "0.0.0.0 for all of its networks"
        ) from error
    try:
        _listen(host, port or 0)
    except (OSError, OverflowError) as error:
        raise RecipeError(f"--port {port}: {error}") from error


def _listen(host: str, port: int) -> None:
    bare = host.removeprefix("[").removesuffix("]")  # of an IPv6 address, as Gradio takes it
    with socket.create_server((bare, port), family=socket.AF_INET6 if ":" in bare else socket.AF_INET):
        pass
