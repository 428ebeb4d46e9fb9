"""``scorefusion data``: the list it prints, the table it writes, its refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from scorefusion.cli import app
from tests.support.look_alikes import AFFINE, LOOK_ALIKES, find_subjects_at, write, write_look_alike


def run(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["data", "-q", *map(str, words)])
    return result.exit_code, result.stdout, result.stderr


def test_everybody_is_listed_with_the_reason_for_each_refusal(tmp_path: Path) -> None:
    like = LOOK_ALIKES["BraTS 2023"]
    write_look_alike(tmp_path, like)
    write(tmp_path / "odd.nii.gz")
    status, out, _ = run(tmp_path, "--contrasts", "t1,t2f", "--read", "--fractions", "0,0,1")
    assert status == 0
    lines = [line.split("  ") for line in out.splitlines()]
    assert lines[0] == ["layout brats: 2 subjects of 2 people, 5 refused"]
    assert [cell.strip() for cell in lines[3] if cell] == [
        "BraTS-GLI-00001-001",
        "BraTS-GLI-00001",
        "test",
        "t1 flair",
        "8 × 9 × 7",
        "1 × 1.204 × 1.503",
    ]
    assert out.count("BraTS-GLI-00004-001-t2f.nii.gz: is a truncated or damaged gzip file") == 1
    assert "1 other file is left out, by name:" in out and "odd.nii.gz" in out


def test_the_table_it_writes_is_the_same_dataset(tmp_path: Path) -> None:
    like = LOOK_ALIKES["BIDS with sessions"]
    write_look_alike(tmp_path / "bids", like)
    status, _, _ = run(tmp_path / "bids", "--contrasts", "t1,t2", "--write", tmp_path / "list.csv")
    assert status == 0
    before, after = (find_subjects_at(tmp_path / name, ("t1", "t2")) for name in ("bids", "list.csv"))
    assert before.subjects == after.subjects
    assert all(after.splits[s.group] == before.splits[s.group] for s in after.subjects)
    line = (tmp_path / "list.csv").read_text().splitlines()[1]
    first = "bids/" + like.path(1, "T1w")
    assert line.startswith(f"sub-01_ses-pre,sub-01,{before.splits['sub-01']},{first},")
    status, _, err = run(tmp_path / "bids", "--write", tmp_path / "list.tsv")
    assert status == 2 and "End its name in .csv" in err


def test_paths_elsewhere_are_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "data" / "a_t1.nii.gz")
    (tmp_path / "lists").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run("data", "--write", "lists/a.csv")[0] == 0
    found = find_subjects_at(tmp_path / "lists" / "a.csv", ("t1",))
    assert found.subjects[0].files["t1"] == tmp_path / "data" / "a_t1.nii.gz"


def test_options_reach_the_description(tmp_path: Path) -> None:
    moved = AFFINE.copy()
    moved[0, 3] += 0.5
    write(tmp_path / "sub-01/anat/sub-01_run-1_T1w.nii.gz")
    write(tmp_path / "sub-01/anat/sub-01_run-2_T1w.nii.gz", affine=moved)
    write(tmp_path / "sub-01/anat/sub-01_T2w.nii.gz", nan=True)
    status, _, err = run(tmp_path)
    assert status == 2 and err.count("\n") == 1 and "has 2 files of t1" in err and "--choose" in err
    status, _, err = run(tmp_path, "--choose", "run-2")
    assert status == 2 and "corners are 0.5 mm apart" in err
    assert run(tmp_path, "--choose", "run-2", "--tolerance", 0.6)[0] == 0
    assert run(tmp_path, "--choose", "run-2", "--resample")[0] == 0
    assert run(tmp_path, "--choose", "run-1")[0] == 0
    assert "NaN" in run(tmp_path, "--choose", "run-1", "--read")[2]
    assert run(tmp_path, "--choose", "run-1", "--read", "--nan", "zero")[0] == 0
    status, _, err = run(tmp_path, "--choose", "run-1", "--split", "test", "--fractions", "1,0,0")
    assert status == 2 and "split test (0% of 1 persons, seed 0) is empty" in err
    for words in (("--layout", "dicom"), ("--fractions", "1,2"), ("--fractions", "a"), ("--nan", "maybe")):
        status, _, err = run(tmp_path, *words)
        assert status == 2 and err.count("\n") == 1, words
    err = run(tmp_path, "--fractions", "a,b")[2]
    assert "--fractions needs three shares such as 0.6,0.1,0.3; got 'a,b'" in err


def test_no_table_of_unknown_persons(tmp_path: Path) -> None:
    write(tmp_path / "file_brain_AXT2_200_2000019.nii.gz")
    status, out, err = run(tmp_path, "--write", tmp_path / "list.csv")
    assert status == 2 and "people unknown" in out and "patients.csv" in err
    assert not (tmp_path / "list.csv").exists()
