"""What a batch takes for its items: folders, layouts, BIDS, tables; names that would do harm."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scorefusion import Pipeline
from scorefusion.batch.items import Item
from scorefusion.batch.sources import Query, find_items, is_batch
from scorefusion.degradations import Inpaint
from scorefusion.errors import BadInput
from scorefusion.models.config import ResidualConfig
from tests.support.batches import names, nobody, refused, translate, volumes, write_model, write_scan
from tests.support.tiny import AFFINE, same_grid_config, tiny_config

ONE, TWO = ("t1",), ("t1", "t2")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Models of one condition and of two."""
    folder = tmp_path_factory.mktemp("models")
    return {1: write_model(folder / "one"), 2: write_model(folder / "two", same_grid_config())}


def found(
    root: Path, out: Path, conditions: tuple[str, ...] = ONE, target: str = "t1", **options: object
) -> dict[str, Item]:
    source = find_items([root], Query(out, conditions, target, **options))  # type: ignore[arg-type]
    items = {item.name: item for item in source.items}
    assert len(items) == len(source.items)
    for item in source.items:
        assert os.path.realpath(item.output).startswith(os.path.realpath(out) + os.sep), item
    return items


def problems(items: dict[str, Item]) -> dict[str, str]:
    return {name: item.problem.error for name, item in items.items() if item.problem}


def touch(root: Path, *files: str) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def test_what_counts_as_many(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    scan = touch(tmp_path, "a.nii.gz") / "a.nii.gz"
    for inputs, output, many in (
        ([tmp_path / "in"], "out", True),
        ([tmp_path / "in"], "out.nii.gz", False),
        ([scan], "out.nii.gz/", True),
        ([tmp_path / "table.csv"], "out", True),
        ([tmp_path / "table.TSV"], "out", True),
        ([scan], "out/", True),
        ([scan], str(tmp_path / "in"), True),
        ([scan], "out", True),
        ([scan], "out.nii", False),
        ([scan], "out.mgz", False),
        ([scan, scan], "out.nii.gz", False),
    ):
        assert is_batch(inputs, output) is many, (inputs, output)


def test_every_file_is_a_scan_of_a_model_with_one_condition(tmp_path: Path) -> None:
    root = touch(tmp_path / "in", "b.nii", "x/a.nii.gz", "x/y/A.NII.GZ", ".b.nii", ".c/d.nii", "e.txt")
    items = found(root, tmp_path / "out")
    assert [(n, i.output.relative_to(tmp_path / "out").as_posix()) for n, i in items.items()] == [
        ("b.nii", "b.nii.gz"),
        ("x/a.nii.gz", "x/a.nii.gz"),
        ("x/y/A.NII.GZ", "x/y/A.nii.gz"),
    ]
    assert not problems(items)


def test_two_inputs_of_one_output_are_both_refused_by_name(tmp_path: Path) -> None:
    root = touch(tmp_path / "in", "a.nii", "a.nii.gz", "a_sd.nii", "b.nii")
    assert problems(found(root, tmp_path / "out")) == {
        "a.nii": f"would give the same output as a.nii.gz: {tmp_path}/out/a.nii.gz",
        "a.nii.gz": f"would give the same output as a.nii: {tmp_path}/out/a.nii.gz",
    }
    (root / "a.nii").unlink()
    source = find_items([root], Query(tmp_path / "out", ONE, "t1"), sides=("sd",))
    assert sorted(item.name for item in source.items if item.problem) == ["a.nii.gz", "a_sd.nii"]


def test_links(tmp_path: Path) -> None:
    """Loops end; a link that leads nowhere fails when it is read; no output replaces an input by a link."""
    root = touch(tmp_path / "in", "a.nii", "sub/b.nii")
    (root / "loop").symlink_to(root)
    (root / "sub" / "up").symlink_to(root / "sub")
    (root / "nowhere.nii").symlink_to(tmp_path / "gone.nii")
    (root / "self.nii").symlink_to(root / "self.nii")
    items = found(root, tmp_path / "out")
    assert list(items) == ["a.nii", "nowhere.nii", "self.nii", "sub/b.nii"] and not problems(items)

    there = touch(tmp_path / "there", "x.nii.gz")
    (tmp_path / "linked").symlink_to(there)
    source = find_items([there / "x.nii.gz"], Query(tmp_path / "linked", ONE, "t1"))
    assert "is an input" in str(source.items[0].problem)


def test_a_folder_that_cannot_be_read_is_an_item_that_fails() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = touch(Path(name) / "in", "a.nii", "closed/b.nii")
        Path(name).chmod(0o755)
        (root / "closed").chmod(0)
        with nobody():
            items = found(root, Path(name) / "out")
        assert list(items) == ["a.nii", "closed/"]
        assert "cannot be read" in problems(items)["closed/"]


def test_names_that_no_file_system_takes(tmp_path: Path) -> None:
    root = touch(tmp_path / "in", f"{'x' * 236}.nii.gz", f"{'y' * 230}.nii.gz")
    assert list(problems(found(root, tmp_path / "out"))) == [f"{'x' * 236}.nii.gz"]


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_a_name_that_is_no_text(models: dict[int, Path], tmp_path: Path) -> None:
    write_scan(tmp_path / "in" / "a.nii.gz").rename(
        os.fsdecode(os.fsencode(tmp_path / "in") + b"/\xff.nii.gz")
    )
    for kind in ("item-done", "item-kept"):
        assert names(translate(models[1], tmp_path / "in", "-o", tmp_path / "out"), kind) == [
            "\\udcff.nii.gz"
        ]
    assert os.listdir(os.fsencode(tmp_path / "out")).count(b"\xff.nii.gz") == 1


def test_subjects_in_folders(models: dict[int, Path], tmp_path: Path) -> None:
    root = tmp_path / "in"
    for subject in ("s1", "s2"):
        for number, contrast in enumerate(TWO):
            write_scan(root / subject / f"{subject}_{contrast}.nii.gz", number)
    write_scan(root / "s3" / "s3_t1.nii.gz")
    events = translate(models[2], root, "-o", tmp_path / "out", code=1)
    assert names(events, "item-done") == ["s1", "s2"] and names(events, "item-failed") == ["s3"]
    assert list(volumes(tmp_path / "out")) == ["s1.nii.gz", "s2.nii.gz"]
    assert "has no t2, only t1" in next(e["error"] for e in events if e["event"] == "item-failed")


def test_brats_and_a_choice_between_files(tmp_path: Path) -> None:
    root = touch(
        tmp_path / "in",
        *(f"BraTS-GLI-0-{k}/BraTS-GLI-0-{k}-{c}.nii.gz" for k in "01" for c in ("t1n", "t2w")),
    )
    assert list(found(root, tmp_path / "out", TWO, "flair")) == ["BraTS-GLI-0-0", "BraTS-GLI-0-1"]
    twice = touch(tmp_path / "twice", "a/t1.nii.gz", "a/t2.nii.gz", "b/old/a_t2.nii.gz")
    assert "has 2 files of t2" in problems(found(twice, tmp_path / "out", TWO, layout="folder"))["a"]
    assert not problems(found(twice, tmp_path / "out", TWO, layout="folder", choose=("a/t",)))


def test_bids_gives_a_derivative(models: dict[int, Path], tmp_path: Path) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    for name in (
        "sub-1/anat/sub-1_T1w",
        "sub-2/ses-a/anat/sub-2_ses-a_acq-x_T1w",
        "sub-2/ses-a/anat/sub-2_ses-a_T2w",
    ):
        write_scan(root / f"{name}.nii.gz")
    write_scan(root / "derivatives" / "x" / "sub-1" / "anat" / "sub-1_T1w.nii.gz")
    (root / "dataset_description.json").write_text("{}")
    events = translate(models[1], root, "-o", out, "--samples", "2")
    assert (
        len(names(events, "item-done")) == 2 and events[0]["source"] == "bids" and events[0]["ignored"] == 2
    )
    assert [name for name in volumes(out) if name.endswith(".gz")] == [
        "sub-1/anat/sub-1_desc-scorefusion_T1w.nii.gz",
        "sub-1/anat/sub-1_desc-scorefusionplanes_T1w.nii.gz",
        "sub-1/anat/sub-1_desc-scorefusionsd_T1w.nii.gz",
        "sub-2/ses-a/anat/sub-2_ses-a_acq-x_desc-scorefusion_T1w.nii.gz",
        "sub-2/ses-a/anat/sub-2_ses-a_acq-x_desc-scorefusionplanes_T1w.nii.gz",
        "sub-2/ses-a/anat/sub-2_ses-a_acq-x_desc-scorefusionsd_T1w.nii.gz",
    ]
    described = json.loads((out / "dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative" and described["GeneratedBy"][0]["Name"] == "scorefusion"
    assert described["BIDSVersion"] and described["Name"]


def test_bids_of_two_conditions(tmp_path: Path) -> None:
    root = touch(tmp_path / "in", *(f"sub-1/ses-b/anat/sub-1_ses-b_{c}.nii.gz" for c in ("T1w", "T2w")))
    (item,) = found(root, tmp_path / "out", TWO, "flair").values()
    assert item.output == tmp_path / "out/sub-1/ses-b/anat/sub-1_ses-b_desc-scorefusion_FLAIR.nii.gz"
    assert [file.name for file in item.files] == ["sub-1_ses-b_T1w.nii.gz", "sub-1_ses-b_T2w.nii.gz"]


# fmt: off
HARMFUL = ["../up", "..", "/abs", "a/b", "a\\b", "C:x", "a\0b", "CON", "nul.txt", "com1", "", ".hidden",
           "x. ", "tail.", "x" * 300, "a\nb", "a\x1bb", "?", "a|b"]
# fmt: on


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_harmful_names_in_a_table_are_refused_line_by_line(tmp_path: Path, ending: str) -> None:
    touch(tmp_path, "a.nii")
    comma = "\t" if ending == ".tsv" else ","
    cells = [f'"{name}"' for name in [*HARMFUL, "good", "twice", "twice"]]
    lines = [f"{name}{comma}a.nii" for name in cells] + [f"lacking{comma}"]
    table = tmp_path / f"table{ending}"
    table.write_text(f"subject{comma}t1\n" + "\n".join(lines), newline="")
    try:
        items = found(table, tmp_path / "out")
    except BadInput as error:  # csv of Python 3.10 takes no NUL at all
        assert "NUL" in str(error)
        return
    good = [item for item in items.values() if not item.problem]
    assert [(item.name, item.output.name) for item in good] == [("good", "good.nii.gz")]
    told = problems(items)
    assert len(told) == len(HARMFUL) + 3 and all("line " in name for name in told if name != "lacking")
    assert "names no file of t1" in told["lacking"]
    assert sum("would give the same output as line" in text for text in told.values()) == 2


def test_a_table(models: dict[int, Path], tmp_path: Path) -> None:
    for number, name in enumerate(("a1", "a2", "b1")):
        write_scan(tmp_path / "scans" / f"{name}.nii.gz", number)
    table = tmp_path / "pairs.csv"
    table.write_text(
        "subject,T1w,T2w\na,scans/a1.nii.gz,scans/a2.nii.gz\nb,scans/b1.nii.gz,scans/gone.nii.gz\n"
    )
    events = translate(models[2], table, "-o", tmp_path / "out", code=1)
    assert names(events, "item-done") == ["a"] and list(volumes(tmp_path / "out")) == ["a.nii.gz"]
    (failed,) = (event for event in events if event["event"] == "item-failed")
    assert failed["name"] == "b" and "gone.nii.gz: does not exist" in failed["error"]
    table.write_text("subject,T1w\na,scans/a1.nii.gz\n")
    assert "has no column of files 't2'" in refused(models[2], table, "-o", tmp_path / "out")


def test_a_table_with_masks(tmp_path: Path) -> None:
    """Each line's own mask is in its translation, and in what decides whether it is up to date."""
    hole, base = Inpaint(hole=0.3), ResidualConfig(base="identity", scale=0.1)
    config = tiny_config(degradation=hole, residual=base)
    model = write_model(tmp_path / "tiny", config)
    for number in range(2):
        mask = np.zeros((7, 6, 5), np.uint8)
        mask[2 + number : 4 + number, 2:4, 1:4] = 1
        nib.save(nib.Nifti1Image(mask, AFFINE), tmp_path / f"hole{number}.nii.gz")
    scan, table, out = write_scan(tmp_path / "scan.nii.gz"), tmp_path / "scans.csv", tmp_path / "out"
    lines = ["subject,t1,mask", "a,scan.nii.gz,hole0.nii.gz", "b,scan.nii.gz,hole1.nii.gz", "c,scan.nii.gz,"]
    table.write_text("\n".join(lines))
    translate(model, table, "-o", out)
    pipeline = Pipeline(model, device="cpu", dtype="float32")
    for name, mask in (("a", "hole0.nii.gz"), ("b", "hole1.nii.gz"), ("c", None)):
        expected = pipeline(scan, mask=None if mask is None else tmp_path / mask).volume
        found = np.asanyarray(nib.load(out / f"{name}.nii.gz").dataobj)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    table.write_text("\n".join([*lines[:2], "b,scan.nii.gz,hole0.nii.gz", lines[3]]))
    events = translate(model, table, "-o", out)
    assert names(events, "item-done") == ["b"]
    (tmp_path / "hole0.nii.gz").unlink()
    assert names(translate(model, table, "-o", out, code=1), "item-failed") == ["a", "b"]


def test_files_named_one_by_one(models: dict[int, Path], tmp_path: Path) -> None:
    one, two = write_scan(tmp_path / "x/a.nii.gz"), write_scan(tmp_path / "y/b.nii.gz")
    translate(models[1], one, two, "-o", f"{tmp_path}/out/")
    assert list(volumes(tmp_path / "out")) == ["a.nii.gz", "b.nii.gz"]
    events = translate(models[2], one, two, "-o", f"{tmp_path}/pair/", code=0)
    assert names(events, "item-done") == ["a"] and list(volumes(tmp_path / "pair")) == ["a.nii.gz"]


def test_sources_that_hold_nothing(models: dict[int, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source, problem in (
        (tmp_path / "empty", "holds nothing to translate (t1). Check its name."),
        (tmp_path / "gone.csv", "cannot be read as a table"),
        (tmp_path / "gone", "does not exist"),
    ):
        assert problem in refused(models[1], source, "-o", f"{tmp_path}/out/")
    assert not (tmp_path / "out").exists()
