"""Names from elsewhere neither steer a terminal nor become markup; a Markdown renderer is the judge."""

import io
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from revhrnet_hf.cli import run
from revhrnet_hf.errors import DataError
from revhrnet_hf.escape import PROGRESS_BAR, PrintableStream, code, fenced, markdown, printable

EVIL = "a|b [x](http://e.org) <script>alert(1)</script> ![i](http://e.org/i.png) `c` **d** www.e.org \n\n## Licence\n```\n\x1b[2J"


def rendered(text):
    markdown_it = MarkdownIt("gfm-like", {"html": True})
    # It would take 0.PW for a host, in the domain of Palau; GitHub makes no link of a name without http:// or www.
    markdown_it.linkify.set({"fuzzy_link": False})
    return markdown_it.render(text)


def text_of(html):
    import html as entities

    return entities.unescape(re.sub("<[^>]+>", "", html))


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_markdown_shows_the_text_itself(text):
    html = rendered(f"x {markdown(text)} y")
    assert re.findall("<[^>]+>", html) == ["<p>", "</p>"]
    assert text_of(html).split() == ["x", *printable(text).split(), "y"]


def test_markdown_of_an_evil_name():
    html = rendered(f"| class | IoU |\n| --- | --- |\n| {markdown(EVIL)} | 0.5 |")
    assert not re.search("<(a|img|script|h2|strong|code)", html)
    assert len(re.findall("<td", html)) == 2


@given(st.text(st.sampled_from("`~ab\n |<"), max_size=30))
def test_code_cannot_be_left(text):
    html = rendered(f"{fenced(text, 'yaml')}\n\nend")
    assert html.count("<pre>") == 1 and html.endswith("<p>end</p>\n")
    span = rendered(f"x {code(text or 'a')} y")
    if (text or "a").strip():
        assert re.sub("<code>.*?</code>", "", span) == "<p>x  y</p>\n"


def test_terminals_are_not_steered(capsys):
    name = "car\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp\r"

    def main():
        print(name)
        print(name, file=sys.stderr)
        raise DataError(f"no class {name}")

    with pytest.raises(SystemExit):
        run(main)
    printed = capsys.readouterr()
    for stream, said in ((printed.out, "car\\x1b]0;owned\\x07\\x1b[2J"), (printed.err, "error: no class car\\x1b]0;")):
        assert said in stream
        assert not set("\x1b\x07\x9b\u202e") & set(stream)
    assert "\r" not in printed.out


def test_a_progress_bar_still_moves():
    shown = io.StringIO()
    PrintableStream(shown, PROGRESS_BAR).write("\r 10% \x1b[A\x1b[31m")
    assert shown.getvalue() == "\r 10% \x1b[A\\x1b[31m"
