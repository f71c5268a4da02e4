"""The documentation site builds without a warning; a real Chromium finds no broken link and nothing that scrolls sideways."""

import importlib.util
import subprocess
import sys
import threading
from dataclasses import fields
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from revhrnet_hf.training.recipe import Recipe

from .browser import open_chromium

ROOT = Path(__file__).parents[1]
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
# The addresses of a page's links within the site, images that did not load, width of the page, text that Markdown left over.
LOOK = """
const main = document.querySelector("article");
const code = new Set(["CODE", "PRE"]);
const texts = [...main.querySelectorAll("p, li, td")].map(x => {
    const copy = x.cloneNode(true);
    copy.querySelectorAll("code, pre").forEach(y => y.remove());
    return copy.textContent;
});
return {
    links: [...document.querySelectorAll("a[href]")].map(x => x.href).filter(x => x.startsWith(location.origin)),
    ids: [...document.querySelectorAll("[id]")].map(x => x.id),
    broken: [...document.images].filter(x => !x.complete || !x.naturalWidth).map(x => x.src),
    width: Math.max(document.documentElement.scrollWidth, document.body.scrollWidth),
    marks: [...main.querySelectorAll("code")].map(x => x.textContent).filter(x => /^`|\\*optional/.test(x) && !x.includes("\\n")),
    leftover: texts.filter(x => /\\|---|```|^\\s*[-*] |\\n\\s*(-|\\d+\\.) |\\]\\(/.test(x)),
};
"""


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site_hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture
def address(site):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_every_field_of_a_recipe_is_in_a_table(hooks):
    tables = hooks.recipe_tables()
    rows = {row.split("|")[1].strip(" `"): row.split("|")[2].strip() for row in tables.splitlines() if row.startswith("| `")}
    assert list(rows) == [each.name for each in fields(Recipe)]
    for name in ("crop_size", "learning_rate", "optimizer", "flip", "push_to_hub"):  # as YAML reads them
        assert yaml.safe_load(rows[name].strip("`")) == getattr(Recipe(dataset="camvid"), name)
    assert rows["ema_decay"] == rows["dataset"] == ""


def test_lists_are_nested_as_on_github(hooks):
    """Compared with a reader of CommonMark, which is what GitHub has."""
    commonmark = pytest.importorskip("markdown_it").MarkdownIt()
    markdown = pytest.importorskip("markdown", reason="the extra `docs` is not installed")
    page = (
        "1. one\n   - inner,\n     that goes on\n   - `second`\n\n   A paragraph of one.\n2. two\n\n- a\n  b\n\n"
        "    code\n\ntext\n\n    code too\n\n```bash\n- no list\n   - nor this\n```\n"
    )
    converted = markdown.markdown(hooks.indent_lists(page), extensions=["fenced_code", "sane_lists"])
    for tag in ("<ol", "<ul", "<li"):
        assert converted.count(tag) == commonmark.render(page).count(tag)
    assert "<p>A paragraph of one.</p>\n</li>" in converted and "- no list\n   - nor this" in converted


def test_docstrings_lose_the_marks_of_transformers(hooks):
    html = (
        "See [<code>HRNetV2Config</code>], a[0] (<code>`str`, *optional*</code>; <code>`list` or `dict`</code>; <code>a*b</code>)"
    )
    expected = "See <code>HRNetV2Config</code>, a[0] (<code>str, optional</code>; <code>list or dict</code>; <code>a*b</code>)"
    assert hooks.without_marks_of_docstrings(html) == expected


@pytest.mark.slow
def test_pages_in_a_browser(address, site, tmp_path):
    pages = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html") if path.name != "404.html")
    assert len(pages) >= len(list((ROOT / "docs").glob("*.md")))
    with open_chromium(tmp_path / "profile") as browser:
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
        seen = {}
        for page in pages:
            browser.get(address + page)
            seen[page] = browser.execute_script(LOOK)
    for page, found in seen.items():
        assert not found["broken"] and found["width"] <= PHONE["width"] and not found["leftover"] + found["marks"], (page, found)
        for link in found["links"]:
            path, _, place = link.removeprefix(address).partition("#")
            target = "index.html" if not path else f"{path}index.html" if path.endswith("/") else path
            assert (site / target).is_file(), f"{page} leads to {link}"
            assert not place or place.startswith("__") or place in seen[target]["ids"], f"{page} leads to {link}"
