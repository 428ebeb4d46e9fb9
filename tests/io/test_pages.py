"""The templates of the HTML pages: complete offline, escaped, under a policy that names their own parts."""

from __future__ import annotations

import re
from pathlib import Path

import jinja2
import pytest

from scorefusion.io import pages
from scorefusion.io.pages import LONGEST, clean, data_url, render
from tests.support.batch_rows import HOSTILE

TEMPLATES = sorted(path.name for path in Path(pages.__file__).parent.glob("*.html"))


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_outside_is_escaped_wherever_it_stands(text: str) -> None:
    section = {"title": text, "text": text, "table": ([text], [[text]]), "image": data_url("png", b"1")}
    page = render("evaluate.html", title=text, head=text, sections=[section], notes=[text])
    calm = render(
        "evaluate.html", title="t", head="t", sections=[dict.fromkeys(section, "")], notes=["t"]
    ).count("<script")
    assert page.count("<script") == calm == 0 and not re.search(r"<(img|b)[^>]*harmed", page)
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
