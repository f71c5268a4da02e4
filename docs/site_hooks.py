"""Hooks of mkdocs (mkdocs.yml): the table of the recipe's fields, lists as on GitHub, docstrings in Transformers' style."""

import re
from dataclasses import MISSING, Field, fields

from revhrnet_hf.training.recipe import GROUPS, Recipe

PLACE = "<!-- recipe fields -->"


def on_page_markdown(markdown: str, **_) -> str:
    return indent_lists(markdown.replace(PLACE, recipe_tables()))


def on_page_content(html: str, **_) -> str:
    return without_marks_of_docstrings(html)


def without_marks_of_docstrings(html: str) -> str:
    """HTML of docstrings in Transformers' style, without its marks: `[Name]` links there, and types are Markdown."""
    html = re.sub(r"\[(<code>[\w.]+</code>)\]", r"\1", html)
    return re.sub(r"<code>(`[^<\n]+)</code>", lambda type_: f"<code>{re.sub('[`*]', '', type_[1])}</code>", html)


def recipe_tables() -> str:
    """A table of name, default and purpose for each group of fields, in a box that site.css lays out on phones."""
    titles = {first: title for title, first in GROUPS.items()}
    lines: list[str] = []
    for of_recipe in fields(Recipe):
        if of_recipe.name in titles:
            title = titles[of_recipe.name]
            lines += ["", "</div>"] if lines else []
            lines += ["", f"## {title[0].upper()}{title[1:]}", "", '<div class="fields" markdown>', ""]
            lines += ["| field | default | purpose |", "|---|---|---|"]
        purpose = of_recipe.metadata["help"].replace("|", "\\|")
        lines.append(f"| `{of_recipe.name}` | {default_of(of_recipe)} | {purpose} |")
    return "\n".join([*lines, "", "</div>"])


def default_of(of_recipe: Field) -> str:
    """The default as YAML has it; empty where there is none."""
    default = of_recipe.default if of_recipe.default_factory is MISSING else of_recipe.default_factory()
    if default is None or default == "":
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def indent_lists(markdown: str) -> str:
    """Lists for Python-Markdown, which nests by four spaces and wants an empty line before a list and after what is nested.

    GitHub, for which the pages are written, nests by the width of the item's mark and needs no empty lines.
    """
    lines, fenced, marks = [], False, []
    for line in markdown.split("\n"):
        text = line.lstrip(" ")
        fence = text.startswith("```")
        if fenced or fence or not text:
            fenced ^= fence
            lines.append(line)
            continue
        indent = len(line) - len(text)
        while marks and indent < marks[-1]:
            marks.pop()
        mark = re.match(r"([-*]|\d+\.) +", text) if indent < 4 or marks else None
        if mark and lines and lines[-1]:
            lines.append("")
        lines.append("    " * len(marks) + text if marks else line)
        if mark:
            marks.append(indent + len(mark[0]))
    return "\n".join(lines)
