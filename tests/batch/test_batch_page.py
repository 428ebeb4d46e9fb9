"""The page of a batch as a file: nothing in it acts, nothing leads outside, the order, the size."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

import pytest

from scorefusion.batch import report as page
from scorefusion.batch.queue import Entry
from scorefusion.errors import BadInput, ScoreFusionError
from tests.support.batch_rows import HOSTILE, HOSTILE_ROWS, morning

FACTS = {"model": "t1-sr4", **{text: text for text in HOSTILE}}


class Parsed(HTMLParser):
    """Tags with their attributes and the text that follows them; ``/`` for an end."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.texts.append("")

    def handle_data(self, data: str) -> None:
        if self.texts:
            self.texts[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self.tags.append(("/", {}))
        self.texts.append("")

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def all(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [(a, text) for (name, a), text in zip(self.tags, self.texts, strict=True) if name == tag]

    def data(self) -> dict:
        (text,) = [text for attributes, text in self.all("script") if attributes.get("id") == "data"]
        return json.loads(text)


def parsed(rows: list[Entry], title: str = "A batch", facts: dict[str, str] | None = None) -> Parsed:
    return Parsed(page.report_page(rows, title=title, facts=facts or {}))


@pytest.fixture(scope="module")
def rows() -> list[Entry]:
    return morning(120, kinds=3)


def test_text_from_outside_makes_no_element(rows: list[Entry]) -> None:
    silent = {"warnings": (), "error": None, "fix": None, "inputs": (), "output": ""}
    harmless = [dataclasses.replace(row, name=f"s{k}", **silent) for k, row in enumerate(rows)]
    calm = [tag for tag, _ in parsed(harmless, facts={f"f{k}": "" for k in range(len(FACTS))}).tags]
    for text in HOSTILE:
        found = parsed(rows, title=text, facts=FACTS)
        assert [tag for tag, _ in found.tags] == calm
        assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]


def test_text_from_outside_is_all_there(rows: list[Entry]) -> None:
    found = parsed(rows, title=HOSTILE[1], facts=FACTS)
    assert found.all("title")[0][1] == found.all("h1")[0][1] == HOSTILE[1]
    told = {row["name"]: row for row in found.data()["rows"]}
    for number, text in enumerate(HOSTILE):
        if text.isprintable():
            row = told[f"{number} {text}"]
            assert row["warnings"] == [text] and row["error"] == row["fix"] == ([text] if number % 2 else [])


def test_what_is_not_seen_is_spelled_out() -> None:
    names = [row["name"] for row in parsed(list(HOSTILE_ROWS)).data()["rows"]]
    for spelled in (r"\u202egnp.nii\u202c", r"nul\u0000 and bell\u0007", r"bytes \udcff\udcfe", "a b c"):
        assert sum(spelled in name for name in names) == 1
    assert "".join(names).isprintable()


def test_a_data_block_is_ascii_without_markup(rows: list[Entry]) -> None:
    text = page.report_page(rows, title="A batch", facts={})
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert block is not None and block[1].isascii() and not re.search("[<>&]", block[1])


def test_nothing_leads_outside(rows: list[Entry]) -> None:
    found = parsed(rows, title="see http://example.org", facts=FACTS)
    for tag, attributes in found.tags:
        assert tag not in ("iframe", "object", "embed", "base", "form", "audio", "video", "use")
        for name in ("src", "href", "action", "data", "srcset", "poster", "style", "xlink:href", "xmlns"):
            assert (attributes.get(name) or "").startswith("data:") or name not in attributes
    (style,) = [text for _, text in found.all("style")]
    code = "".join(text for attributes, text in found.all("script") if "type" not in attributes)
    assert not re.search(r"//|url\(|@import|http", style)
    assert not re.search(
        r"//|http|fetch|XMLHttp|innerHTML|insertAdjacent|document\.write|eval|Function\(", code
    )
    for attributes, text in found.all("script"):
        if attributes.get("type") == "text/plain":
            assert re.fullmatch(r"(data:image/(webp|jpeg);base64,[\w+/=]+)? ?(data:[\w/;,+=]+)?", text)


def test_the_policy_allows_this_style_and_this_script_and_data_images_only(rows: list[Entry]) -> None:
    found = parsed(rows)
    (policy,) = [
        a["content"] for a, _ in found.all("meta") if a.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in (policy or "").split(";"))

    def hashed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    code = [text for attributes, text in found.all("script") if "type" not in attributes]
    assert rules == {
        "default-src": "'none'", "img-src": "data:", "base-uri": "'none'", "form-action": "'none'",
        "style-src": hashed(found.all("style")[0][1]), "script-src": hashed(code[0]),
    }  # fmt: skip
    assert len(code) == 1


def test_links_are_relative_and_name_the_very_file(tmp_path: Path) -> None:
    names = [
        "a b/ü#?&;.nii.gz",
        "c:d%20e'\".nii",
        "javascript:alert(1)",
        "\udcff.nii",
        "back\\slash.nii",
        "./x//y",
    ]
    made = parsed([Entry(name=name, state="done", output=name) for name in names]).data()["rows"]
    for name, row in zip(names, made, strict=True):
        parts = urlsplit(row["link"])
        assert (parts.scheme, parts.netloc, parts.query, parts.fragment) == ("", "", "", "")
        assert not parts.path.startswith("/")
        assert unquote_to_bytes(parts.path) == os.fsencode(Path(name).as_posix())
    for outside in ("/etc/passwd", "../x.nii", "a/../../x"):
        (row,) = parsed([Entry(name="x", state="done", output=outside)]).data()["rows"]
        assert row["link"] == row["output"] == ""


def test_failures_first_then_outliers_then_the_rest_in_their_order(rows: list[Entry]) -> None:
    waiting = [Entry(name=f"later {k}", state="waiting") for k in range(3)]
    found = parsed([*waiting, *rows]).data()["rows"]
    states = [row["state"] for row in found]
    assert states == sorted(states, key=["failed", "outlier", "done", "waiting"].index)
    assert states.count("failed") == sum(row.state == "failed" for row in rows)
    outliers = [row for row in found if row["state"] == "outlier"]
    assert [row["name"][:8] for row in outliers] == ["sub-0040", "sub-0081"]
    assert "residual" in outliers[0]["flags"][0] and "time" in outliers[1]["flags"][0]
    assert [place for place, figure in enumerate(outliers[0]["figures"]) if figure and figure[2]] == [0]
    for state, given in (("failed", "failed"), ("done", "done"), ("waiting", "waiting")):
        wanted = [row.name for row in [*waiting, *rows] if row.state == given]
        names = [row["name"] for row in found if row["state"] == state]
        plain = [name for name in wanted if name.isprintable()]
        assert [name for name in names if name in plain] == [name for name in plain if name in names]


def test_the_head_counts_and_adds_up() -> None:
    done = [Entry(name=str(k), state="done", seconds={"sample": 60.0 + k}, residual=0.001) for k in range(9)]
    more = [Entry(name="f", state="failed", seconds={"sample": 999.0}), Entry(name="w", state="waiting")]
    text = page.report_page([*done, *more], title="A batch", facts={"model": "t1-sr4"})
    shown = re.sub("<[^>]*>", "", text.split('<p class="summary">')[1].split("</p>")[0])
    assert shown == "9 of 11 done · 1 failed · 1 waiting · 9 min 36 s in all, median 1 min 04 s a scan"
    assert "<dt>model</dt><dd>t1-sr4</dd>" in text
    bars = re.findall(r"<title>[^<]*: (\d+) scans?</title>", text)
    assert sum(map(int, bars)) == 9, "residuals are all alike: there is only one histogram"


def test_a_histogram_counts_every_scan_once(rows: list[Entry]) -> None:
    text = page.report_page(rows, title="A batch", facts={})
    drawn = text.split('<figure class="histogram">')[1:]
    assert len(drawn) == 2
    for part in drawn:
        bars = re.findall(r"<title>[^<]*: (\d+) scans?</title>", part.split("</svg>")[0])
        assert sum(map(int, bars)) == sum(row.state == "done" for row in rows)


def test_columns_that_hold_nothing_are_left_out() -> None:
    assert parsed([Entry(name="a", state="done", seconds={"sample": 1.0})]).data()["figures"] == ["Time"]
    assert parsed([Entry(name="a", state="waiting")]).data()["figures"] == []
    assert parsed([]).data() == {"figures": [], "columns": page.COLUMNS, "rows": []}
    odd = Entry(name="a", state="done", numbers={"fold": float("nan"), "residual": 2.0})
    assert parsed([odd]).data()["rows"][0]["figures"] == [[None, "nan", True]]


def test_the_same_rows_give_the_same_bytes_and_one_file(rows: list[Entry], tmp_path: Path) -> None:
    for name in ("one.html", "two.html"):
        page.write_page(tmp_path / name, rows, title="A batch", facts=FACTS)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.html", "two.html"]
    assert b"\r" not in (tmp_path / "one.html").read_bytes()


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("old")
    with pytest.raises(ScoreFusionError, match="neither WebP nor JPEG"):
        bad = Entry(name="x", state="done", before=b"\x89PNG...")
        page.write_page(tmp_path / "report.html", [bad], title="A batch", facts={})
    assert (tmp_path / "report.html").read_text() == "old"
    with pytest.raises(BadInput, match="could not be written"):
        page.write_page(tmp_path / "none" / "report.html", [], title="A batch", facts={})


def test_a_row_is_small_whatever_it_says() -> None:
    empty = len(page.report_page([], title="A batch", facts={}))
    assert empty < 40_000
    usual = morning(100, kinds=2)
    assert (len(page.report_page(usual, title="A batch", facts={})) - empty) / len(usual) < 12_000
    long = "x" * 10**6
    row = Entry(name=long, state="failed", inputs=(long,) * 900, warnings=(long,) * 900, error=long, fix=long)
    size = len(page.report_page([row], title=long, facts={long: long})) - empty
    assert size < 20_000
