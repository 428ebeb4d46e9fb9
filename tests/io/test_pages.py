"""The templates of the HTML pages: complete offline, escaped, under a policy that names their own parts."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import jinja2
import pytest

from scorefusion.io import pages
from scorefusion.io.pages import LONGEST, clean, data_url, render
from tests.support.batch_rows import HOSTILE

TEMPLATES = sorted(path.name for path in Path(pages.__file__).parent.glob("*.html"))


class Tags(HTMLParser):
    """The tags of a page, each with the names of its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.all: list[tuple[str, list[str]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.all.append((tag, [name for name, _ in attrs]))


def page_of(text: str) -> str:
    section = {"title": text, "text": text, "table": ([text], [[text]]), "image": data_url("png", b"1")}
    return render("evaluate.html", title=text, head=text, sections=[section], notes=[text])


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_outside_makes_no_element_and_no_attribute(text: str) -> None:
    page = page_of(text)
    assert Tags(page).all == Tags(page_of("calm")).all
    assert "default-src 'none'" in page and "script-src" not in page


def test_a_value_that_is_missing_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        render("evaluate.html", title="t")


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_template_leads_outside_or_turns_escaping_off(name: str) -> None:
    source = (Path(pages.__file__).parent / name).read_text(encoding="utf-8")
    assert not re.search(r"https?:|//|@import|\|\s*safe|autoescape", source)


def test_clean_bounds_and_spells_out() -> None:
    assert clean("a\n  b\u202e") == r"a b\u202e" and clean("bell\x07 \udcff") == r"bell\u0007 \udcff"
    assert clean("é 中") == "é 中" and len(clean("x" * 10**6)) == LONGEST + 2
