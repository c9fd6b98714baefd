"""What every HTML page shares: templates that escape all text, and the base of its style sheet."""

from pathlib import Path

import jinja2

BASE_STYLE = Path(__file__).with_name("web_page.css")


def environment(folder: Path) -> jinja2.Environment:
    """The templates in `folder`, escaping everything that is put into them.

    A name that a template uses and is not given is an error, not an empty place.
    """
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def style(file: Path) -> str:
    """The style sheet of a page: what all pages share, then what `file` adds."""
    return BASE_STYLE.read_text(encoding="utf-8") + "\n" + file.read_text(encoding="utf-8")
