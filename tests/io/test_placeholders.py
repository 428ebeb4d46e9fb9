"""Files whose content is elsewhere: what every command says of them, and the command that fetches it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scorefusion import Pipeline
from scorefusion.cli import app
from scorefusion.errors import BadInput
from scorefusion.io import read_grid, read_scan
from tests.support.batches import names, refused, translate, write_model, write_scan
from tests.support.look_alikes import find_subjects_at

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def annex_link(path: Path) -> None:
    path.symlink_to("../.git/annex/objects/aa/bb/MD5E-s9--0.nii.gz/MD5E-s9--0.nii.gz")


KINDS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "annex link": (annex_link, "is not fetched: it is a git-annex link", "git annex get"),
    "annex pointer": (
        lambda path: path.write_text("/annex/objects/MD5E-s9--0.nii.gz\n"),
        "is not fetched: it is a git-annex pointer",
        "git annex get",
    ),
    "lfs pointer": (lambda path: path.write_text(LFS), "is not fetched: it is a git-lfs", "git lfs pull"),
    "broken link": (lambda path: path.symlink_to("gone"), "is a symbolic link to a file that does not", ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.mark.parametrize("name", ["a b.nii.gz", "a.nii", "a.mgz", "a.nrrd", "a.mhd", "a.hdr", "a.img"])
@pytest.mark.parametrize("kind", KINDS)
def test_readers(tmp_path: Path, kind: str, name: str) -> None:
    write, problem, fix = KINDS[kind]
    write(tmp_path / name)
    for read in (read_scan, read_grid):
        with pytest.raises(BadInput, match=problem) as caught:
            read(tmp_path / name)
        assert fix in caught.value.fix and (not fix or name in caught.value.fix)
        assert fix == "" or ("'" in caught.value.fix) is (" " in name)
        if fix:  # git-lfs matches no absolute path, and both need the repository's folder
            command = caught.value.fix.split(": ", 1)[1]
            assert caught.value.fix.startswith(f"Run in {tmp_path}: git ") and str(tmp_path) not in command


def test_a_placeholder_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.nii").write_text(LFS)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=r"Run: git lfs pull --include a\.nii\."):
        read_scan(Path("a.nii"))


@pytest.mark.parametrize("kind", KINDS)
def test_commands(tmp_path: Path, model: Path, kind: str) -> None:
    """One file, a folder with a good one, a table, a data folder, a table of data that is not here."""
    write, problem, fix = KINDS[kind]
    root = tmp_path / "in"
    write_scan(root / "good_t1.nii.gz")
    write(root / "bad_t1.nii.gz")
    single = ["translate", str(root / "bad_t1.nii.gz"), "-o", str(tmp_path / "x.nii"), "--model", str(model)]
    result = CliRunner().invoke(app, [*single, "--device", "cpu"])
    assert result.exit_code == 2 and problem in result.stderr and fix in result.stderr
    (tmp_path / "t.csv").write_text("subject,t1\na,in/bad_t1.nii.gz\nb,in/good_t1.nii.gz\n")
    for source, done in ((root, "good_t1.nii.gz"), (tmp_path / "t.csv", "b")):
        events = translate(model, source, "-o", tmp_path / f"out-{source.name}", code=1)
        assert names(events, "item-done") == [done]
        (failed,) = (event for event in events if event["event"] == "item-failed")
        assert problem in failed["error"] and fix in (failed["fix"] or "")
    found = find_subjects_at(root, ("t1",))
    assert problem in found.refused[0].reason and fix in found.refused[0].fix
    write(tmp_path / "u.csv")
    assert problem in refused(model, tmp_path / "u.csv", "-o", tmp_path / "o")
    with pytest.raises(BadInput, match=problem):
        find_subjects_at(tmp_path / "u.csv", ("t1",))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("kind", KINDS)
def test_models(tmp_path: Path, kind: str, name: str) -> None:
    write, problem, fix = KINDS[kind]
    folder = write_model(tmp_path / "tiny")
    (folder / name).unlink()
    write(folder / name)
    with pytest.raises(BadInput, match=problem):
        Pipeline(folder, device="cpu")
    write_scan(tmp_path / "in" / "a.nii.gz")
    assert problem in refused(folder, tmp_path / "in", "-o", tmp_path / "out")


def test_the_second_file_of_a_pair(tmp_path: Path) -> None:
    import nibabel as nib
    import numpy as np

    nib.save(nib.Nifti1Pair(np.ones((4, 5, 6), np.int16), np.eye(4)), tmp_path / "a.img")
    (tmp_path / "a.img").unlink()
    annex_link(tmp_path / "a.img")
    with pytest.raises(BadInput, match="a.img: is not fetched.*git annex get"):
        read_scan(tmp_path / "a.hdr")


def test_a_link_to_what_is_here_and_large_text_pass(tmp_path: Path) -> None:
    store = tmp_path / ".git" / "annex" / "objects"
    write_scan(store / "k.nii.gz")
    (tmp_path / "a.nii.gz").symlink_to(store / "k.nii.gz")
    assert read_scan(tmp_path / "a.nii.gz").shape == (7, 6, 5)
    (tmp_path / "b.nii").write_text(LFS + "x" * 40000)
    with pytest.raises(BadInput, match="is not a NIfTI file"):
        read_scan(tmp_path / "b.nii")
