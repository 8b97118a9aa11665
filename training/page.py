"""A page of text, tables and pictures as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_CSS = """
:root { --ink: #1d2530; --soft: #5d6875; --line: #dfe4ea; --accent: #0072b2; }
* { box-sizing: border-box; }
body { font: 15px/1.55 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; color: var(--ink);
       max-width: 1040px; margin: 0 auto; padding: 40px 28px 72px; background: #fff; }
h1 { font-size: 27px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 19px; margin: 44px 0 10px; padding-top: 16px; border-top: 1px solid var(--line); }
p { max-width: 76ch; margin: 8px 0; }
.lead { font-size: 17px; margin: 18px 0 8px; }
.soft { color: var(--soft); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 14px 0; }
th, td { padding: 6px 14px; text-align: right; border-bottom: 1px solid var(--line);
         white-space: nowrap; }
th { font-weight: 600; color: var(--soft); font-size: 13px; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 4px; }
tr.first td { background: #eef6fb; font-weight: 600; }
.scroll { overflow-x: auto; }
figure { margin: 18px 0; }
figure svg { width: 100%; height: auto; display: block; }
figcaption { color: var(--soft); font-size: 13.5px; max-width: 86ch; margin-top: 4px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 5px 18px; max-width: 92ch; }
dt { font-weight: 600; } dd { margin: 0; }
code { font: 13px ui-monospace, Menlo, Consolas, monospace; background: #f3f5f8;
       padding: 1px 4px; border-radius: 3px; }
li { margin: 3px 0; }
summary { cursor: pointer; color: var(--accent); margin: 10px 0; }
pre { font: 12.5px/1.5 ui-monospace, Menlo, Consolas, monospace; background: #f3f5f8;
      padding: 14px 16px; border-radius: 6px; overflow-x: auto; }
@media print { body { padding: 0; } h2, figure, tr { break-inside: avoid; } }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """Put parts, each a piece of HTML, on a page."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def heading(text: str) -> str:
    """Begin a section."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str, *, kind: str = "") -> str:
    """One paragraph; ``kind`` is ``lead``, ``soft`` or nothing."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def bullets(texts: Iterable[str]) -> str:
    """A list of sentences."""
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def folded(summary: str, text: str) -> str:
    """Preformatted text behind a line that opens it."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def glossary(entries: Iterable[tuple[str, str]]) -> str:
    """Terms and what they mean."""
    body = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in entries)
    return f"<dl>{body}</dl>"


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, marks_first: bool = False
) -> str:
    """A table of text; the first column is left-aligned, the first row marked if asked."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = []
    for place, row in enumerate(rows):
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        body.append(
            f'<tr class="first">{cells}</tr>' if marks_first and not place else f"<tr>{cells}</tr>"
        )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def picture(svg: str, caption: str) -> str:
    """A picture with what it shows."""
    named = svg.replace("<svg", f'<svg role="img" aria-label="{escape(caption, quote=True)}"', 1)
    return f"<figure>{named}<figcaption>{escape(caption)}</figcaption></figure>"
