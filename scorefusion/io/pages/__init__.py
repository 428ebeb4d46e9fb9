"""HTML pages from Jinja2 templates: one file each, complete offline, with everything from outside escaped.

Every page extends ``base.html``, has the one stylesheet inside, and carries a Content-Security-Policy that
allows this stylesheet, the page's own script and ``data:`` images, and nothing else.
"""

import base64
import functools
import hashlib
from pathlib import Path
from typing import Any
from unicodedata import category

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

LONGEST = 600  #: characters that :func:`clean` leaves of a text
_CONTROLS = ("Cc", "Cs", "Zl", "Zp")
_BIDI = {0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF}


def render(template: str, **values: Any) -> str:
    """Render a template of this folder; text is escaped, names from outside go through ``|clean`` there."""
    return _PAGES.get_template(template).render(values)


def clean(text: str) -> str:
    """Return text of bounded length without characters that are invisible or reorder their neighbours.

    Line breaks and runs of blanks become a blank; control characters, direction marks and bytes that are not
    UTF-8 are spelled as ``\\u202e``.
    """
    text = " ".join(text[: 4 * LONGEST].split())
    if not text.isprintable():
        text = "".join(f"\\u{ord(c):04x}" if ord(c) in _BIDI or category(c) in _CONTROLS else c for c in text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def data_url(kind: str, data: bytes) -> Markup:
    """Return an image as a URL that holds it; ``kind`` is its subtype, such as ``png``."""
    return Markup(f"data:image/{kind};base64,{base64.b64encode(data).decode()}")


@functools.cache
def _asset(name: str) -> Markup:
    return Markup((Path(__file__).parent / name).read_text(encoding="utf-8"))


@functools.cache
def _digest(name: str) -> str:
    """Return what a Content-Security-Policy calls an asset."""
    return f"sha256-{base64.b64encode(hashlib.sha256(_asset(name).encode()).digest()).decode()}"


_PAGES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_PAGES.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
_PAGES.filters["clean"] = clean
_PAGES.globals |= {"asset": _asset, "digest": _digest}
