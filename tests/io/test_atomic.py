"""What is kept of the file that an output replaces: its mode, its group, the link that leads to it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scorefusion.batch import write_report
from scorefusion.errors import BadInput
from scorefusion.io import check_output, folder_written_beside, save_image, written_beside
from tests.support.batches import names, nobody, translate, write_model, write_scan
from tests.support.tiny import AFFINE, tiny_model

pytestmark = pytest.mark.skipif(os.name == "nt", reason="modes and links are those of POSIX")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def volume(path: Path) -> None:
    save_image(nib.Nifti1Image(np.arange(60, dtype=np.float32).reshape(3, 4, 5), AFFINE), path)


def text(path: Path) -> None:
    with written_beside(path) as beside:
        beside.write_text("new")


def model(path: Path) -> None:
    tiny_model().save_pretrained(path.parent, card="# tiny")


def folder(path: Path) -> None:
    with folder_written_beside(path.parent) as beside:
        (beside / path.name).write_text("new")


WRITERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "volume": ("out/a.nii.gz", volume),
    "text": ("out/a.csv", text),
    "weights": ("out/model.safetensors", model),
    "card": ("out/README.md", model),
    "series": ("out/0001.dcm", folder),
}


@pytest.fixture
def umask() -> None:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.parametrize("kept", [0o640, 0o600, 0o664, 0o444], ids=oct)
@pytest.mark.parametrize("kind", WRITERS)
def test_a_replaced_file_keeps_its_mode(tmp_path: Path, umask: None, kind: str, kept: int) -> None:
    name, write = WRITERS[kind]
    path = tmp_path / name
    path.parent.mkdir()
    write(path)
    assert mode(path) == 0o644 and path.stat().st_size
    path.chmod(kept)
    path.parent.chmod(0o750)
    before = path.stat().st_ino
    write(path)
    assert mode(path) == kept and path.stat().st_ino != before and path.stat().st_size
    assert mode(path.parent) == 0o750


def test_a_new_file_follows_the_umask(tmp_path: Path, umask: None) -> None:
    os.umask(0o027)
    volume(tmp_path / "a.nii")
    model(tmp_path / "m" / "x")
    assert {mode(file) for file in [tmp_path / "a.nii", *(tmp_path / "m").iterdir()]} == {0o640}


def test_nobody_reads_meanwhile_who_may_not_read_the_old_file(tmp_path: Path, umask: None) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(0o640)
    with written_beside(path) as beside:
        beside.write_text("new")
        assert mode(beside) & 0o077 == 0
    assert path.read_text() == "new" and mode(path) == 0o640


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root gives files away")
def test_owner_and_group_are_kept_and_else_nobody_gains(tmp_path: Path, umask: None) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    os.chown(path, 65534, 65534)
    path.chmod(0o660)
    text(path)
    assert (path.stat().st_uid, path.stat().st_gid, mode(path)) == (65534, 65534, 0o660)
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == 0 and parent.name.startswith(("pytest", "popen")):
            parent.chmod(0o755)
    os.chown(path, 0, 12345)
    path.chmod(0o660)
    with nobody():
        text(path)  # another's file in a folder that all may write to
    assert mode(path) == 0o600 and path.read_text() == "new"


@pytest.mark.parametrize("there", [True, False], ids=["", "dangling"])
@pytest.mark.parametrize("kind", ["volume", "text"])
def test_a_link_is_written_through(tmp_path: Path, umask: None, kind: str, there: bool) -> None:
    name, write = WRITERS[kind]
    link, target = tmp_path / name, tmp_path / "store" / "x.bin"
    for path in (link, target):
        path.parent.mkdir()
    if there:
        target.write_text("old")
        target.chmod(0o640)
    (tmp_path / "store" / "middle").symlink_to("x.bin")
    link.symlink_to("../store/middle")
    check_output(link, (link.suffix,))
    write(link)
    assert link.is_symlink() and os.readlink(link) == "../store/middle"
    assert target.is_file() and not target.is_symlink() and target.read_bytes() not in (b"old", b"")
    assert mode(target) == (0o640 if there else 0o644)
    assert sorted(path.name for path in target.parent.iterdir()) == ["middle", "x.bin"]


def test_a_failed_write_through_a_link_keeps_the_target(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")
    (tmp_path / "link").symlink_to("x")
    with (
        pytest.raises(BadInput, match="link: could not be written .No space"),
        written_beside(tmp_path / "link"),
    ):
        raise OSError(28, "No space left on device")
    assert (tmp_path / "x").read_text() == "old" and len(list(tmp_path.iterdir())) == 2


def test_a_linked_folder_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o750)
    (tmp_path / "real" / "stale").write_text("old")
    (tmp_path / "link").symlink_to("real")
    folder(tmp_path / "link" / "new")
    assert (tmp_path / "link").is_symlink() and os.listdir(tmp_path / "real") == ["new"]
    assert mode(tmp_path / "real") == 0o750


@pytest.mark.parametrize(
    ("leads", "problem"),
    [
        (".git/annex/objects/aa/bb/SHA256E-s9--x.nii/SHA256E-s9--x.nii", "git annex unlock"),
        ("../../.git/annex/objects/aa/bb/k/k", "git annex unlock"),
        ("nowhere/a.nii", "into a folder that does not exist"),
        ("a.nii", "leads to itself"),
        ("/dev/null", "is not a regular file"),
    ],
)  # fmt: skip
def test_links_that_are_refused_before_and_after_the_work(tmp_path: Path, leads: str, problem: str) -> None:
    link = tmp_path / "a.nii"
    link.symlink_to(leads)
    before = sorted(tmp_path.rglob("*"))
    for write in (volume, lambda path: check_output(path, (".nii",))):
        with pytest.raises(BadInput, match=problem) as caught:
            write(link)
        assert caught.value.file == str(link)
    assert sorted(tmp_path.rglob("*")) == before and os.readlink(link) == leads
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_present_annex_object_is_not_replaced(tmp_path: Path) -> None:
    content = tmp_path / ".git" / "annex" / "objects" / "k" / "k"
    content.parent.mkdir(parents=True)
    content.write_text("measured")
    (tmp_path / "a.nii").symlink_to(content)
    with pytest.raises(BadInput, match="git annex unlock a.nii"):
        volume(tmp_path / "a.nii")
    assert content.read_text() == "measured"


def test_a_batch_writes_through_links_and_names_those_it_must_not(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_scan(tmp_path / "in" / f"{name}.nii.gz")
    out, store = tmp_path / "out", tmp_path / "store"
    out.mkdir(), store.mkdir()
    (out / "a.nii.gz").symlink_to(store / "a.nii.gz")
    (out / "b.nii.gz").symlink_to(".git/annex/objects/k/k")
    (out / "c.nii.gz").symlink_to(tmp_path / "in" / "c.nii.gz")
    (out / "report.html").symlink_to(store / "page.html")
    events = translate(write_model(tmp_path / "tiny"), tmp_path / "in", "-o", out, code=1)
    assert names(events, "item-done") == ["a.nii.gz"]
    failed = {
        event["name"]: f"{event['error']} {event['fix']}"
        for event in events
        if event["event"] == "item-failed"
    }
    assert "git annex unlock" in failed["b.nii.gz"] and "is an input" in failed["c.nii.gz"]
    assert (out / "a.nii.gz").is_symlink() and nib.load(store / "a.nii.gz").shape == (14, 12, 10)
    write_report(out)
    assert (out / "report.html").is_symlink() and "<html" in (store / "page.html").read_text()
    assert nib.load(tmp_path / "in" / "c.nii.gz").shape == (7, 6, 5)


def test_a_report_keeps_its_mode(tmp_path: Path, umask: None) -> None:
    write_scan(tmp_path / "in" / "a.nii.gz")
    translate(write_model(tmp_path / "tiny"), tmp_path / "in", "-o", tmp_path / "out")
    (tmp_path / "out" / "report.html").chmod(0o600)
    assert mode(write_report(tmp_path / "out")) == 0o600


def test_other_hard_links_keep_the_old_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    os.link(tmp_path / "a", tmp_path / "b")
    text(tmp_path / "a")
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("new", "old")
