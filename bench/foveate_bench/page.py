"""A report as one page that opens from disk: its pictures lie in it, and it needs no script."""

import base64
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

_STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; color: #22303c; margin: 2rem auto; max-width: 76rem;
       padding: 0 1.5rem; }
h1, h2, h3 { line-height: 1.2; margin-top: 2em; }
h1 { margin-top: 0; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: 13px;
        font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #e6e9ec; white-space: nowrap; }
th { color: #5b6873; font-weight: 600; text-align: left; }
tbody tr:hover { background: #f4f6f8; }
img { max-width: 100%; }
code { font-size: .9em; background: #f4f6f8; padding: .1em .3em; white-space: pre-wrap; }
"""


def to_html(markdown: str, folder: Path) -> str:
    """Return a page of Markdown whose pictures are PNG files in `folder`; raises OSError."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.add_render_rule("image", _inlining(folder))
    title = escape(markdown.partition("\n")[0].lstrip("# "))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{_STYLE}</style>\n</head>\n<body>\n"
        f"{parser.render(markdown)}</body>\n</html>\n"
    )


def _inlining(folder: Path) -> Callable[..., str]:
    """Return the rule that renders a picture as its own bytes."""

    def render(
        renderer: RendererHTML,  # noqa: ARG001 - the interface of a rule
        tokens: Sequence[Token],
        index: int,
        *_: object,
    ) -> str:
        token = tokens[index]
        data = base64.b64encode((folder / str(token.attrs["src"])).read_bytes()).decode("ascii")
        return f'<img alt="{escape(token.content)}" src="data:image/png;base64,{data}">'

    return render
