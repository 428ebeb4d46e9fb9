"""What lies about in real folders: links, loops, hidden files, unreadable folders, tables with faults."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from scorefusion.data import DatasetConfig, find_subjects, volume_files
from scorefusion.errors import BadInput
from tests.support.look_alikes import find_subjects_at, write


def test_loops_end_and_linked_folders_are_followed_once(tmp_path: Path) -> None:
    root = tmp_path / "data"
    elsewhere = tmp_path / "elsewhere" / "sub-2"
    write(root / "sub-1" / "sub-1_t1.nii.gz")
    write(elsewhere / "sub-2_t1.nii.gz")
    (root / "sub-1" / "up").symlink_to(root)
    (root / "itself").symlink_to(root / "itself")
    (root / "linked").symlink_to(elsewhere)
    (root / "linked again").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(root / "sub-1")
    assert [path.name for path in volume_files(root)] == ["sub-2_t1.nii.gz", "sub-1_t1.nii.gz"]
    assert volume_files(root)[1] == root / "sub-1" / "sub-1_t1.nii.gz"
    assert [s.name for s in find_subjects_at(root, ("t1",)).subjects] == ["sub-1", "sub-2"]


def test_hidden_files_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "sub-1_t1.nii.gz")
    (tmp_path / "._sub-1_t1.nii.gz").write_bytes(b"\x00\x05\x16\x07")
    write(tmp_path / ".hidden" / "sub-2_t1.nii.gz")
    (tmp_path / "sub-1_t1.nii.gz.json").write_text("{}")
    found = find_subjects_at(tmp_path, ("t1",))
    assert len(found.subjects) == 1 and not found.ignored and not found.refused


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a_t1.nii.gz")
    (tmp_path / "b_t1.nii.gz").symlink_to(tmp_path / ".git" / "annex" / "b")
    (tmp_path / "c_t1.nii.gz").symlink_to(tmp_path / "c_t1.nii.gz")
    os.mkfifo(tmp_path / "d_t1.nii.gz")
    found = find_subjects_at(tmp_path, ("t1",), voxels=True)
    assert [r.subject for r in found.refused] == ["b", "c", "d"]
    assert "is not fetched" in found.refused[0].reason and "git annex get" in found.refused[0].fix
    assert "is not a file" in found.refused[2].reason


@pytest.fixture
def locked() -> Iterator[Path]:
    """A folder in a dataset that the user (for root: nobody, for a while) may not read."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    write(root / "a_t1.nii.gz")
    (root / "locked").mkdir(mode=0)
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65534)
    yield root
    if was_root:
        os.seteuid(0)
    (root / "locked").chmod(0o700)
    shutil.rmtree(root)


def test_a_folder_that_cannot_be_read_is_one_clear_error(locked: Path) -> None:
    with pytest.raises(
        BadInput, match=r"locked: cannot be read \(Permission denied\). Check its permissions"
    ):
        find_subjects_at(locked, ("t1",))


def write_table(tmp_path: Path, text: str, name: str = "data/list.csv") -> Path:
    for subject in ("a", "b"):
        for contrast in ("t1", "t2"):
            write(tmp_path / "volumes" / f"{subject}_{contrast}.nii.gz")
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8-sig")
    return path


@pytest.mark.parametrize(("comma", "ending"), [(",", "csv"), (";", "csv"), ("\t", "tsv")])
def test_a_table(tmp_path: Path, comma: str, ending: str) -> None:
    absolute = tmp_path / "volumes" / "b_t2.nii.gz"
    lines = [
        "Subject,group,T1w,T2w,age,split",
        "a,smith,../volumes/a_t1.nii.gz, ../volumes/a_t2.nii.gz ,71,train",
        f"b,smith,../volumes/b_t1.nii.gz,{absolute},,",
        "c,,../volumes/c_t1.nii.gz,../volumes/a_t2.nii.gz,,test",
        "d_ses-1,,../volumes/a_t1.nii.gz,,,",
        "",
        ",,,,,",
        "e,,,,1,",
    ]
    table = write_table(tmp_path, "\n".join(lines).replace(",", comma), f"data/list.{ending}")
    found = find_subjects_at(table, ("t1", "t2"))
    assert found.layout == "csv"
    assert [(s.name, s.group) for s in found.subjects] == [("a", "smith"), ("b", "smith")]
    assert found.subjects[1].files["t2"] == absolute
    reasons = {r.subject: r.reason for r in found.refused}
    assert reasons["c"] == "does not exist" and reasons["d_ses-1"] == "has no t2, only t1"
    assert reasons["e"] == "line 8 names no file"
    assert found.splits["smith"] == "train" and found.splits["c"] == "test" and "d" in found.splits


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column 'subject'; its columns are none"),
        ("name,t1\na,x.nii", "has no column 'subject'; its columns are name, t1"),
        ("subject,t1,t1\na,x.nii,y.nii", "names the column 't1' twice"),
        ("subject,t1,t1w\na,x.nii,y.nii", "columns 't1' and 't1w' both hold t1"),
        ("subject,t1\na,x.nii,y.nii", "line 2 has 3 cells, the header 2"),
        ("subject,t1\na,x.nii\na,y.nii", "names subject 'a' in lines 2 and 3"),
        ("subject,t1\n,x.nii", "line 2 has no subject"),
        ('subject,t1\na,"x.nii', "cannot be read as a table"),
        ("subject,t1,split\na,x.nii,training", "unknown split 'training'; did you mean 'train'?"),
        (
            "subject,group,split,t1\na,p,train,x.nii\nb,p,test,y.nii",
            "person 'p' is in split test and in train",
        ),
    ],
)
def test_a_faulty_table_is_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadInput) as error:
        find_subjects_at(write_table(tmp_path, text), ("t1",))
    assert message in str(error.value) and "list.csv" in str(error.value)


def test_a_table_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"subject,t1\n\xff\xfe,x")
    with pytest.raises(BadInput, match="cannot be read as a table"):
        find_subjects_at(tmp_path / "list.csv", ("t1",))


def test_a_folder_with_somebody_elses_patients_csv(tmp_path: Path) -> None:
    """The file's name alone makes no dataset fastMRI."""
    write(tmp_path / "a_t1.nii.gz")
    (tmp_path / "patients.csv").write_text("id,age\n1,2\n")
    assert len(find_subjects(DatasetConfig(root=str(tmp_path), contrasts=("t1",))).subjects) == 1
