"""scripts/demo.py: the page in a real browser, what it says of odd and broken files, and the Space in a process of its own."""

import base64
import copy
import dataclasses
import html
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import ExifTags, Image
from transformers.modeling_outputs import SemanticSegmenterOutput

import revhrnet_hf
from revhrnet_hf.evaluation import InferenceSettings, load_checkpoint, segment
from revhrnet_hf.images import read_image
from revhrnet_hf.synthetic import draw_scenes

pytest.importorskip("gradio", reason="the extra `demo` is not installed")

from revhrnet_hf.commands import demo
from revhrnet_hf.demo import page as demo_page
from revhrnet_hf.demo import space
from revhrnet_hf.demo.page import SLIDING, WHOLE, answers_to, load_segmenter
from revhrnet_hf.demo.space import export_space
from revhrnet_hf.errors import CheckpointError, DataError, HubError, RecipeError

from .. import forked
from ..browser import open_chromium

SCRIPT = Path(__file__).parents[2] / "scripts" / "demo.py"
NAMES = ["road", "sky & <b>clouds</b>", "car", "tree"]


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "street.png"
    [scene] = draw_scenes("val", 1, (90, 140), seed=0)
    Image.fromarray(scene.image).save(path)
    return path


@pytest.fixture(scope="module")
def segmenter(tiny_checkpoint):
    return load_segmenter(tiny_checkpoint)


@pytest.fixture(scope="module")
def expected(tiny_checkpoint, image):
    """What `segment` says of the image: whole, and in windows of 64 × 64."""
    model, image_processor = load_checkpoint(tiny_checkpoint)
    settings = {WHOLE: InferenceSettings(), SLIDING: InferenceSettings(window=(64, 64))}
    rgb = read_image(image)
    found = {how: segment(model, image_processor, rgb, each, return_confidence=True) for how, each in settings.items()}
    assert len(np.unique(found[WHOLE].label_map)) > 2  # else little would be proved
    assert (found[WHOLE].label_map != found[SLIDING].label_map).mean() > 0.01
    return found


def shares(label_map):
    """Rows of the legend: name and percent, largest first."""
    counts = np.bincount(label_map.ravel(), minlength=len(NAMES))
    order = sorted((index for index in range(len(NAMES)) if counts[index]), key=lambda index: -counts[index])
    return [(NAMES[index], f"{100 * counts[index] / label_map.size:.1f} %") for index in order]


def downloaded(url):
    return Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))


@pytest.fixture
def serving():
    """Starts commands that serve a page, gives the address that they print, and ends them."""
    processes = []

    def start(command, **options):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        processes.append(forked.Popen(command, preloaded=forked.DEMO, **pipes, **options))
        printed = []
        for line in processes[-1].stdout:
            printed.append(line)
            if found := re.search(r"The page is at (http://127\.0\.0\.1:\d+)", line):
                return found[1]
        pytest.fail(f"the page's process ended: {''.join(printed)}")

    yield start
    for process in processes:
        process.terminate()
        process.wait(20)


@pytest.fixture
def browser(tmp_path):
    with open_chromium(tmp_path / "profile") as driver:
        yield driver


class Page:
    """What a visitor does and sees."""

    def __init__(self, browser, address):
        self.browser = browser
        browser.get(address)

    def wait(self, condition, seconds=60):
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.browser, seconds, ignored_exceptions=[StaleElementReferenceException]).until(
            lambda _: condition(), self.text()
        )

    def find(self, selector):
        return self.browser.find_elements("css selector", selector)

    def text(self):
        return self.find("body")[0].text

    def upload(self, path):
        clear = self.find('#image button[aria-label="Clear"], #image button[title="Clear"]')
        if clear:
            clear[0].click()
        self.wait(lambda: self.find("#image input[type=file]"))
        self.find("#image input[type=file]")[0].send_keys(str(path))

    def legend(self):
        rows = [row.find_elements("css selector", "th, td:last-child") for row in self.find(".seg-legend tr")]
        return [tuple(cell.text for cell in row) for row in rows]

    def overlay(self):
        """The overlay to download, (height, width, 3), without the names of the browser's folder of downloads."""
        [link] = self.find(".seg-overlay")
        self.browser.execute_script("arguments[0].click()", link)
        assert link.get_attribute("download") == "street_overlay.png"
        return np.asarray(downloaded(link.get_attribute("href")).convert("RGB"))

    def point(self, across, down):
        """Move the pointer to a share of the shown image's width and height; what the page then says there."""
        from selenium.webdriver.common.action_chains import ActionChains

        [stack] = self.find(".seg-stack")
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", stack)
        box = stack.rect
        offset = round((across - 0.5) * box["width"]), round((down - 0.5) * box["height"])
        ActionChains(self.browser).move_to_element_with_offset(stack, *offset).perform()
        self.wait(lambda: self.find(".seg-tip")[0].text)
        place = self.browser.execute_script(
            "const box = arguments[0].getBoundingClientRect(), dot = arguments[0].querySelector('.seg-dot').style;"
            "return [parseFloat(dot.left) / 100, parseFloat(dot.top) / 100]",
            stack,
        )
        return place, self.find(".seg-tip")[0].text

    def foreign_requests(self):
        messages = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        assert any("127.0.0.1" in url for url in urls)
        return [url for url in urls if not re.match(r"http://127\.0\.0\.1|data:|blob:|chrome:", url)]


@pytest.mark.slow
def test_in_a_browser(tiny_checkpoint, image, expected, browser, serving, tmp_path):
    address = serving([sys.executable, SCRIPT, tiny_checkpoint])
    page = Page(browser, address)
    page.wait(lambda: page.find("#image input[type=file]"))

    # An image: legend, values under the pointer, label map.
    page.upload(image)
    page.wait(lambda: page.legend())
    whole, map_shape = expected[WHOLE], expected[WHOLE].label_map.shape
    assert page.legend() == shares(whole.label_map)
    for across, down in ((0.1, 0.2), (0.5, 0.9), (0.93, 0.5)):
        (left, top), said = page.point(across, down)
        pixel = int(top * map_shape[0]), int(left * map_shape[1])
        assert abs(left - across) < 0.02 and abs(top - down) < 0.02
        assert said == f"{NAMES[whole.label_map[pixel]]} · {round(100 * float(whole.confidence[pixel]))} %"
    [link] = page.find(".seg-labels")
    assert link.get_attribute("download") == "street_labels.png"
    np.testing.assert_array_equal(np.asarray(downloaded(link.get_attribute("href"))), whole.label_map)

    # Opacity and classes, without asking the server; the overlay as it is shown.
    [colours] = page.find(".seg-colours")
    assert colours.value_of_css_property("opacity") == "0.5"
    rgb = np.asarray(read_image(image)).astype(float)
    painted = np.array(load_segmenter(tiny_checkpoint).palette)[whole.label_map]
    assert np.abs(page.overlay() - (rgb + painted) / 2).mean() < 3  # the image is shown as JPEG
    set_value = "arguments[0].value = 0.9; arguments[0].dispatchEvent(new Event('input', {bubbles: true}));"
    browser.execute_script(set_value, page.find(".seg-opacity input")[0])
    assert page.find(".seg-colours")[0].value_of_css_property("opacity") == "0.9"
    first = page.find(".seg-legend input")[0]
    first.click()
    off = whole.label_map == int(first.get_attribute("data-id"))
    overlay, mixed = page.overlay(), 0.1 * rgb + 0.9 * painted
    assert np.abs(overlay[off] - rgb[off]).mean() < 8 and np.abs(overlay[~off] - mixed[~off]).mean() < 2
    assert np.abs(overlay[off] - mixed[off]).mean() > 20
    on_screen = downloaded(page.find(".seg-colours")[0].get_attribute("src")).convert("RGBA")
    np.testing.assert_array_equal(np.asarray(on_screen)[..., 3], np.where(off, 0, 255))
    page.find(".seg-legend button")[1].click()
    assert np.abs(page.overlay() - rgb).mean() < 8
    page.find(".seg-legend button")[0].click()
    assert np.abs(page.overlay() - mixed).mean() < 2
    page.find(".seg-legend input")[0].click()

    # Sliding window.
    page.find("#how input")[1].click()
    page.wait(lambda: len(page.find("#window input")) == 2)
    for edge in page.find("#window input"):
        edge.clear()
        edge.send_keys("64")
    page.find("#segment")[0].click()
    page.wait(lambda: page.legend() == shares(expected[SLIDING].label_map))
    # What the visitor has chosen holds for the next answer.
    largest = NAMES[np.bincount(whole.label_map.ravel()).argmax()]
    boxes = {box.find_element("xpath", "..").text: box.is_selected() for box in page.find(".seg-legend input")}
    assert [name for name, is_on in boxes.items() if not is_on] == [largest]
    assert page.find(".seg-opacity input")[0].get_attribute("value") == "0.9"

    # Files that are no images, or too large.
    broken = tmp_path / "broken.png"
    broken.write_bytes(image.read_bytes()[:100])
    page.upload(broken)
    page.wait(lambda: page.find(".seg-error"))
    said = page.find(".seg-error")[0].text
    assert said.startswith("Image broken.png cannot be read") and "/" not in said
    (tmp_path / "large.png").write_bytes(bytes(31_500_000))
    page.upload(tmp_path / "large.png")
    page.wait(lambda: "exceed the maximum allowed size of 30" in page.text())

    # A phone: nothing sticks out, and the answer comes before its settings.
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    )
    browser.get(address)
    page.wait(lambda: page.find("#image input[type=file]"))
    page.upload(image)
    page.wait(lambda: page.legend() == shares(whole.label_map))
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    assert page.find(".seg-stack")[0].rect["width"] > 280
    in_order = ("#image", ".seg-stack", ".seg-opacity", ".seg-legend", "#how")
    places = [page.find(selector)[0].location["y"] for selector in in_order]
    assert places == sorted(places)
    assert page.foreign_requests() == []


def answer(segmenter, path, how=WHOLE, edges=(64, 64)):
    [said] = answers_to([segmenter], str(path), how, *edges)
    return said


def test_names_are_text_and_the_label_map_is_there(segmenter, image, expected):
    said = answer(segmenter, image)
    assert html.escape(NAMES[1]) in said and NAMES[1] not in said
    [url] = re.findall(r'download="street_labels.png" href="([^"]+)"', said)
    label_map = downloaded(url)
    np.testing.assert_array_equal(np.asarray(label_map), expected[WHOLE].label_map)
    np.testing.assert_array_equal(np.array(label_map.getpalette()[:12]).reshape(4, 3), segmenter.palette)


def test_images_of_every_kind_are_seen_as_a_person_sees_them(segmenter, tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.new("RGBA", (30, 20)).save(tmp_path / "clear.png")
    Image.new("CMYK", (30, 20)).save(tmp_path / "print.jpg")
    Image.fromarray(grey).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    Image.new("RGB", (3000, 40)).save(tmp_path / "wide.png")
    found = {path.stem: answer(segmenter, path) for path in tmp_path.iterdir()}
    sizes = {stem: re.search(r"(\d+) × (\d+) pixels", said).groups() for stem, said in found.items()}
    assert sizes == dict.fromkeys(["grey", "deep", "clear", "print"], ("30", "20")) | {
        "turned": ("20", "30"),
        "dot": ("1", "1"),
        "wide": ("3000", "40"),
    }
    maps = {stem: np.asarray(downloaded(re.search(r'href="(data:image/png[^"]+)', said)[1])) for stem, said in found.items()}
    np.testing.assert_array_equal(maps["grey"], maps["deep"])
    assert maps["wide"].shape == (40, 3000)


def test_two_legends_have_one_order(segmenter, image, tiny_checkpoint):
    """The order is that of the shares of both; a class that only one checkpoint knows has no row in the other's legend."""
    other = copy.copy(segmenter.model)
    other.forward = lambda **inputs: _turned_round(segmenter.model.forward(**inputs))
    names = ["wall", *(name.title() for name in NAMES[1:])]
    second = dataclasses.replace(segmenter, title="other", model=other, names=names)
    both = [legend_of(said) for said in answers_to([segmenter, second], str(image), WHOLE, 64, 64)]
    counts = {}
    for model, own in ((segmenter, NAMES), (second, names)):
        label_map = segment(model.model, model.image_processor, read_image(image), InferenceSettings()).label_map
        for index, name in enumerate(own):
            counts[name.lower()] = counts.get(name.lower(), 0) + (label_map == index).sum()
    order = sorted((name for name in counts if counts[name]), key=lambda name: -counts[name])
    assert [name for name, _ in both[0]] == [name for name in order if name != "wall"]
    assert [name.lower() for name, _ in both[1]] == [name for name in order if name != "road"]
    [alone] = answers_to([second], str(image), WHOLE, 64, 64)
    assert legend_of(alone) != both[1]  # alone it is sorted by its own shares


def _turned_round(outputs):
    return SemanticSegmenterOutput(logits=-outputs.logits)


def legend_of(said):
    rows = re.findall(r"<span>([^<]+)</span></label></th>.*?</td><td>([^<]+)</td>", said)
    return [(html.unescape(name), share) for name, share in rows]


def test_background_is_off_at_first(segmenter, image, expected):
    """As in figures and reports; the box of the legend turns it on."""
    untinted = dataclasses.replace(segmenter, untinted=frozenset({1}))
    said, usual = answer(untinted, image), answer(segmenter, image)
    [url] = re.findall(r'class="seg-colours" src="([^"]+)"', said)
    alpha = np.asarray(downloaded(url).convert("RGBA"))[..., 3]
    np.testing.assert_array_equal(alpha, np.where(expected[WHOLE].label_map == 1, 0, 255))
    assert re.search(r'data-id="1" data-colour="[\d,]+">', said) and len(re.findall(" checked>", usual)) > 2
    assert len(re.findall(" checked>", said)) == len(re.findall(" checked>", usual)) - 1


def test_what_cannot_be_shown_is_said_on_the_page(segmenter, image, tmp_path, monkeypatch):
    (tmp_path / "notes.png").write_text("not an image")
    said = answer(segmenter, tmp_path / "notes.png")
    assert 'role="alert"' in said and "notes.png" in said and str(tmp_path) not in said
    monkeypatch.setattr(demo_page, "MOST_MEGAPIXELS", 0.01)
    assert "0 megapixels; this page takes up to 0.01" in answer(segmenter, image)
    assert "give the window a height and a width" in answer(segmenter, image, SLIDING, (None, 64))


def test_a_visitor_gets_a_share_of_the_server_only(segmenter, image, tmp_path, monkeypatch):
    """Pixels, edges, windows and time have limits, and a large image is shown to the network at a smaller size."""
    assert demo_page.MOST_MEGAPIXELS <= 64 and demo_page.MOST_MEGABYTES <= 64
    Image.new("1", (demo_page.MOST_EDGE + 1, 1)).save(tmp_path / "long.png")
    assert "pixels long; this page takes up to" in answer(segmenter, tmp_path / "long.png")

    Image.new("RGB", (1000, 700)).save(tmp_path / "photo.png")
    assert "takes 1," in (said := answer(segmenter, tmp_path / "photo.png", SLIDING, (32, 32))) and "give larger windows" in said
    small = dataclasses.replace(
        segmenter, image_processor=revhrnet_hf.RevHRNetImageProcessor(do_resize=True, size={"longest_edge": 64})
    )
    found = demo_page.answer(small, tmp_path / "photo.png", InferenceSettings(window=(32, 32)))  # 3×2 windows, not 1,000
    assert found.label_map.shape == (700, 1000)

    seen = []
    hook = segmenter.model.register_forward_pre_hook(
        lambda _, args, inputs: seen.append(tuple(inputs["pixel_values"].shape[-2:])), with_kwargs=True
    )
    monkeypatch.setattr(demo_page, "WHOLE_MEGAPIXELS", 0.05)
    said = answer(segmenter, tmp_path / "photo.png")
    hook.remove()
    [(height, width)] = seen
    assert 0.9 * 50_000 < height * width <= 50_000 and abs(width / height - 10 / 7) < 0.02
    assert "1000 × 700 pixels" in said and f"saw it at {width} × {height} pixels" in said
    assert downloaded(re.search(r'href="(data:image/png[^"]+)', said)[1]).size == (1000, 700)

    monkeypatch.setattr(demo_page, "MOST_SECONDS", -1)
    assert "took longer than the -1 s" in answer(segmenter, image)
    assert not segmenter.model._forward_pre_hooks


def test_what_the_page_is_served_with(monkeypatch):
    """On this machine only, with a limit on uploads and a queue that cannot grow."""
    launched = {}
    page = build_page_with_stub(monkeypatch, launched)
    demo_page.serve(page)
    assert launched["server_name"] == "127.0.0.1" and launched["share"] is False
    assert launched["max_file_size"] == f"{demo_page.MOST_MEGABYTES}mb"


@pytest.mark.parametrize("host", ["192.0.2.1", "a..b", "[2001:db8::1]"])  # of documentation (RFC 5737, RFC 3849), and no name
def test_an_address_of_another_machine(monkeypatch, host):
    """It is said at once, and not after Gradio has tried a hundred ports."""
    launched = {}
    page = build_page_with_stub(monkeypatch, launched)
    for port in (None, 7860):
        with pytest.raises(RecipeError, match=rf"^--host {re.escape(host)} is no address of this machine \("):
            demo_page.serve(page, host, port)
    assert launched == {}
    demo_page.serve(page, "localhost")
    assert launched["server_name"] == "localhost"


def test_the_commands_page_is_for_this_machine(tiny_checkpoint, monkeypatch):
    served = []
    monkeypatch.setattr(demo_page, "load_segmenter", lambda *_: None)
    monkeypatch.setattr(demo_page, "build_page", lambda *_: None)
    monkeypatch.setattr(demo_page, "serve", lambda page, *address: served.append(address))
    demo.main([str(tiny_checkpoint)])
    assert served == [("127.0.0.1", None)]


def test_the_address_is_checked_before_the_checkpoints_are_loaded(tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(demo_page, "load_segmenter", None)
    with pytest.raises(RecipeError, match="--host"):
        demo.main([str(tiny_checkpoint), "--host", "192.0.2.1"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "127.0.0.1", "--port", "7860"], "--host, --port: "),
        (["--device", "cpu"], "--device: "),
        (["--compile"], "--compile: "),
    ],
)
def test_a_space_is_not_served_here(tmp_path, options, said):
    with pytest.raises(RecipeError, match=f"^{said}for the page that is served here"):
        demo.main(["checkpoint", "--export_space", str(tmp_path / "space"), *options])


def test_a_space_installs_from_the_package_index(monkeypatch):
    """Which has no `torch==2.9.1+cpu`."""
    monkeypatch.setattr(space, "version", lambda name: "2.9.1+cpu" if name == "torch" else "1.0")
    pins = space.requirements()
    assert "torch==2.9.1" in pins and "timm==1.0" in pins


def build_page_with_stub(monkeypatch, launched):
    class Served:
        def launch(self, **options):
            launched.update(options)
            return None, "http://127.0.0.1:7860", None

        def block_thread(self):
            pass

        def close(self):
            launched["closed"] = True

    monkeypatch.setattr(demo_page.signal, "signal", lambda *_: None)
    return Served()


def test_a_download_has_an_escaped_name(segmenter, tmp_path):
    path = tmp_path / 'a"><img src=x onerror=alert(1)>.png'
    Image.new("RGB", (40, 30)).save(path)
    said = answer(segmenter, path)
    assert "<img src=x" not in said and html.escape(path.stem) in said


def test_example_images_go_with_the_page(segmenter):
    page = demo_page.build_page([segmenter])
    folder = Path(page.drawn_examples.name)
    assert len(list(folder.glob("*.png"))) == 2
    page.drawn_examples.cleanup()
    assert not folder.exists()


def test_a_checkpoints_own_examples(tiny_checkpoint, image, tmp_path):
    """They are offered in place of drawn streets, and go into a Space; one that cannot be read is an error before the page."""
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "run" / "best")
    (checkpoint / "examples").mkdir()
    (checkpoint / "examples" / "notes.txt").write_text("not an image")
    assert load_segmenter(checkpoint).examples == []
    shutil.copyfile(image, checkpoint / "examples" / "street.png")
    page = demo_page.build_page([load_segmenter(checkpoint)])
    assert page.drawn_examples is None and "street.png" in json.dumps(page.get_config_file())
    export_space(tmp_path / "space", [checkpoint])
    [copied] = (tmp_path / "space" / "checkpoints" / "1" / "run" / "best" / "examples").iterdir()
    assert copied.read_bytes() == image.read_bytes()
    (checkpoint / "examples" / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"broken\.png cannot be read"):
        load_segmenter(checkpoint)


@pytest.mark.parametrize(
    ("history", "size"),
    [
        (None, (512, 512)),
        ([{"dataset": "camvid"}], (512, 512)),
        ([{"recipe": {"crop_size": [96, 128]}}], (96, 128)),
        ([{"recipe": {"epochs": 3}}], (512, 1024)),  # the recipe's default, which is not recorded
    ],
)
def test_the_window_is_the_crop_of_the_training(segmenter, history, size):
    model = copy.copy(segmenter.model)
    model.config = copy.copy(model.config)
    model.config.training_history = history
    assert demo_page.default_window([dataclasses.replace(segmenter, model=model)]) == size


def test_a_space_holds_only_what_may_be_published(tiny_checkpoint, tmp_path, monkeypatch):
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "run" / "best")
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (52.0, 31.0, 12.0)
    Image.effect_noise((40, 30), 50).convert("RGB").save(tmp_path / "photo.jpg", exif=exif, comment=b"from /home/me")
    # A checkout with somebody's own file in it.
    package = tmp_path / "checkout" / "revhrnet_hf"
    shutil.copytree(Path(revhrnet_hf.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for arguments in (["init", "--quiet"], ["add", "."]):
        subprocess.run(["git", *arguments], cwd=package.parent, check=True)
    beside = package / "notes_of_mine.py"
    beside.write_text("")
    with monkeypatch.context() as patch:
        patch.setattr(revhrnet_hf, "__file__", str(package / "__init__.py"))
        export_space(tmp_path / "space", [checkpoint], [tmp_path / "photo.jpg"])
    assert not (tmp_path / "space" / package.name / beside.name).exists()
    beside.unlink()
    own = {path.relative_to(package) for path in package.rglob("*.py")}
    copied = {path.relative_to(tmp_path / "space" / package.name) for path in (tmp_path / "space").rglob("*.py")
              if package.name in path.relative_to(tmp_path / "space").parts[:1]}  # fmt: skip
    assert own - copied == set()
    with Image.open(tmp_path / "space" / "examples" / "1_photo.jpg") as example:
        assert example.size == (30, 40) and not example.getexif() and "comment" not in example.info

    assert "trust_remote_code" not in (tmp_path / "space" / "app.py").read_text()
    export_space(tmp_path / "trusted", [checkpoint], trust_remote_code=True)
    assert "load_segmenter(checkpoint, trust_remote_code=True)" in (tmp_path / "trusted" / "app.py").read_text()

    (checkpoint / "versions.json").write_text('{"x": "data:/home/me/sets"}')
    with pytest.raises(HubError, match=r"no Space was written: .*versions\.json holds the absolute path /home/me/sets"):
        export_space(tmp_path / "other", [checkpoint])
    assert not (tmp_path / "other").exists()


PLANTED = {
    "token": ("README.md", "# mine\n\nhf_" + "a1B2" * 8 + "xy\n", r"README\.md holds an access token"),
    "place": ("versions.json", '{"x": "/home/me/sets"}', r"versions\.json holds the absolute path /home/me"),
    "place of another": ("preprocessor_config.json", None, r"preprocessor_config\.json holds the absolute path /home/me"),
    "pickle": ("pytorch_model.bin", "", "pytorch_model.bin: pickles are not sent"),
    "other code": ("modeling_revhrnet.py", "import os\n", r"modeling_revhrnet\.py .* differ from this package's code"),
}


@pytest.mark.parametrize(("name", "content", "said"), PLANTED.values(), ids=PLANTED)
def test_what_must_not_be_published_stops_a_space(tiny_checkpoint, tmp_path, name, content, said):
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "run" / "best")
    if content is None:
        content = (checkpoint / name).read_text().replace("{", '{"note": "/home/me/x", ', 1)
    (checkpoint / name).write_text(content)
    with pytest.raises(HubError, match=said):
        export_space(tmp_path / "space", [checkpoint])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("name", ["versions.json", "README.md", "example.png"])
def test_a_link_out_of_a_checkpoint_stops_a_space(tiny_checkpoint, tmp_path, name):
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "run" / "best")
    (checkpoint / name).unlink(missing_ok=True)
    (tmp_path / "thesis.txt").write_text("{}")
    (checkpoint / name).symlink_to(tmp_path / "thesis.txt")
    with pytest.raises(HubError, match=rf"{name} is a link out of the checkpoint's folder"):
        export_space(tmp_path / "space", [checkpoint])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "thesis.txt"]


def test_a_space_does_not_say_whose_home_a_checkpoint_lay_in(tiny_checkpoint, tmp_path):
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "jane_doe" / "streets")
    export_space(tmp_path / "space", [checkpoint])
    assert "CHECKPOINTS = ['checkpoints/1/streets']" in (tmp_path / "space" / "app.py").read_text(encoding="utf-8")
    assert not [path for path in (tmp_path / "space").rglob("*") if "jane_doe" in path.relative_to(tmp_path).as_posix()]


def run_script(*arguments):
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    finished = forked.run(command, preloaded=forked.DEMO, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 1
    return finished.stderr.splitlines()[-1]


@pytest.mark.slow
def test_an_ended_page_leaves_no_files(tiny_checkpoint, tmp_path):
    (tmp_path / "temporary").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary"), "HF_HUB_OFFLINE": "1"}
    command, pipe = [sys.executable, SCRIPT, tiny_checkpoint], subprocess.PIPE
    process = forked.Popen(command, preloaded=forked.DEMO, env=environment, stdout=pipe, text=True)
    assert "The page is at" in process.stdout.readline()
    assert list((tmp_path / "temporary").glob("revhrnet_*"))
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert not list((tmp_path / "temporary").glob("revhrnet_*"))


@pytest.mark.slow
def test_errors_of_the_command(tiny_checkpoint, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        said = run_script(tiny_checkpoint, "--port", taken.getsockname()[1])
    assert said.startswith("error: --port")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    said = run_script(tiny_checkpoint, "--examples", tmp_path / "broken.png", "--export_space", tmp_path / "space")
    assert said.startswith("error: Image ") and "broken.png cannot be read" in said and not (tmp_path / "space").exists()


@pytest.mark.slow
def test_space_runs_on_its_own(tiny_checkpoint, image, serving, tmp_path):
    space, checkpoint = tmp_path / "space", shutil.copytree(tiny_checkpoint, tmp_path / "my_run" / "last")
    # What is not for others: what a run needs to go on, and images of the dataset.
    (checkpoint / "scores_camvid_val_worst").mkdir()
    for name in ("optimizer.safetensors", "training_state.json", "scores_camvid_val_worst/001_a.png"):
        shutil.copyfile(image, checkpoint / name)
    export_space(space, [checkpoint], [image])
    copied = {path.name for path in (space / "checkpoints" / "1" / "my_run" / "last").iterdir() if not path.is_symlink()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= copied
    assert not copied & {"optimizer.safetensors", "training_state.json", "scores_camvid_val_worst"}
    _, front_matter, _ = (space / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    told = yaml.safe_load(front_matter)
    assert "CHECKPOINTS = ['checkpoints/1/my_run/last']" in (space / "app.py").read_text(encoding="utf-8")
    import gradio

    assert (told["sdk"], told["sdk_version"], told["app_file"]) == ("gradio", gradio.__version__, "app.py")
    pins = dict(line.split("==") for line in (space / "requirements.txt").read_text().splitlines())
    assert {"torch", "transformers", "timm"} <= set(pins)
    everything = b"".join(path.read_bytes() for path in space.rglob("*") if path.is_file())
    assert str(checkpoint).encode() not in everything

    moved = space.rename(tmp_path / "elsewhere")  # as on the Hub's machine
    environment = {**os.environ, "PYTHONPATH": str(moved)}
    address = serving([sys.executable, "app.py"], cwd=moved, env=environment)
    assert b"seg-answers" in urllib.request.urlopen(f"{address}/config", timeout=60).read()
    with pytest.raises(CheckpointError, match="not an empty folder"):
        export_space(moved, [tiny_checkpoint])
