"""Finding series in folders: by content, at any depth, without a pixel; choosing one."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from scorefusion.errors import BadInput
from scorefusion.io.dicom import choose_series, find_series, read_dicom_series
from scorefusion.io.dicom import file as dicom_file
from tests.support.dicom_series import CT, enhanced_of, save, slice_of, texture, uid, write_series

REAL = Path(pydicom.__file__).parent / "data/test_files"


def test_files_are_known_by_their_content(tmp_path: Path) -> None:
    """Nested folders, names without an ending, other files, an index, a loop of links, a pipe."""
    write_series(tmp_path / "one/deep", name="a")
    for k, plane in enumerate(texture()):
        save(slice_of(plane, k, name="b", kind=CT), tmp_path / f"two/{k % 2}/{k}.jpg")
    (tmp_path / "one/notes.dcm").write_text("no DICOM")
    (tmp_path / "empty").touch()
    index = slice_of(texture()[0], 0, name="index")
    del index.SeriesInstanceUID
    index.SOPClassUID = "1.2.840.10008.1.3.10"
    save(index, tmp_path / "DICOMDIR")
    (tmp_path / "one/deep/up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
    found = find_series(tmp_path)
    assert [(series.uid, series.modality, series.images, len(series.files)) for series in found] == sorted(
        [(uid("series", "a"), "MR", 5, 5), (uid("series", "b"), "CT", 5, 5)]
    )
    assert all(
        (series.rows, series.columns, series.number, series.problem) == (7, 6, 3, "") for series in found
    )
    assert {series.study_uid for series in found} == {uid("study")}


def test_no_pixel_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("read")

    write_series(tmp_path)
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:-80])  # all but the last of the pixels' 84 bytes
    monkeypatch.setattr(dicom_file, "read_pixels", never)
    (found,) = find_series(tmp_path)
    assert found.images == 5 and not found.problem


def test_one_volume_is_chosen_among_what_is_none(tmp_path: Path) -> None:
    def localizer(image: Any, k: int) -> None:
        image.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    write_series(tmp_path / "a", name="a")
    write_series(tmp_path / "b", name="b", change=localizer)
    assert choose_series(tmp_path).uid == uid("series", "a")
    with pytest.raises(BadInput, match="is a localizer"):
        read_dicom_series(tmp_path, series=uid("series", "b"))
    with pytest.raises(BadInput, match="holds no series that is a volume.*is a localizer"):
        read_dicom_series(tmp_path / "b")


def test_several_volumes_are_listed_and_one_can_be_named(tmp_path: Path) -> None:
    write_series(tmp_path, name="a")
    for k, plane in enumerate(texture(seed=1)):
        save(slice_of(plane, k, name="b"), tmp_path / f"b{k}")
    with pytest.raises(BadInput, match="2 series") as error:
        read_dicom_series(tmp_path)
    for name in "ab":
        assert f"{uid('series', name)} (MR 'series {name}', 5 of 6 × 7)" in str(error.value)
    assert "series=" in error.value.fix
    for name, seed in (("a", 0), ("b", 1)):
        scan = read_dicom_series(tmp_path, series=uid("series", name))
        values = scan.to_own_order(scan.values).transpose(2, 1, 0)
        np.testing.assert_array_equal(values, texture(seed=seed))
    described = next(series for series in find_series(tmp_path) if series.uid == uid("series", "b"))
    assert read_dicom_series(described).series_uid == uid("series", "b")
    with pytest.raises(BadInput, match=r"holds no series '1\.2\.3', only 2\.25"):
        read_dicom_series(tmp_path, series="1.2.3")


def test_real_folders(tmp_path: Path) -> None:
    """The study of several machines that pydicom ships, with an index and files without endings."""
    found = find_series(REAL / "dicomdirtests")
    assert len(found) == 14 and sum(len(series.files) for series in found) == 81
    scout = [series for series in found if series.description == "Scout"]
    assert [series.problem for series in scout] == ["is a localizer"]
    (heart,) = (series for series in found if series.description.startswith("SmartScore"))
    scan = read_dicom_series(heart)
    assert scan.shape == (16, 16, 5) and (scan.slope, scan.intercept) == (1.0, -1024.0)
    np.testing.assert_allclose(np.diag(scan.affine)[:3], [-0.488281, -0.488281, 2.5])
    (brain,) = (series for series in found if series.description == "Routine Brain")
    with pytest.raises(BadInput, match="161 slices missing"):
        read_dicom_series(brain)


@pytest.mark.parametrize("path", sorted(REAL.glob("*.dcm")), ids=lambda path: path.stem)
def test_every_real_file_is_named_or_refused_in_one_line(path: Path) -> None:
    """None of them is a volume by itself."""
    with pytest.raises(BadInput) as error:
        read_dicom_series(path)
    assert "\n" not in str(error.value) and str(error.value).endswith(".") and error.value.fix


def test_nothing_to_find(tmp_path: Path) -> None:
    assert find_series(tmp_path) == []
    with pytest.raises(BadInput, match="holds no DICOM file"):
        read_dicom_series(tmp_path)
    with pytest.raises(BadInput, match="does not exist"):
        find_series(tmp_path / "nowhere")


def test_a_damaged_file_is_named_not_passed_over(tmp_path: Path) -> None:
    files = write_series(tmp_path)
    files[2].write_bytes(files[2].read_bytes()[:300])
    with pytest.raises(BadInput) as error:
        find_series(tmp_path)
    assert error.value.file == str(files[2])


def test_what_a_description_holds_cannot_break_the_line(tmp_path: Path) -> None:
    def change(image: Any, k: int) -> None:
        image.SeriesDescription = "red\x1b[31m\nline"

    write_series(tmp_path, change=change)
    assert find_series(tmp_path)[0].description == "red[31mline"


def test_inputs_are_never_opened_for_writing(tmp_path: Path) -> None:
    write_series(tmp_path)
    save(enhanced_of(texture(), name="e"), tmp_path / "enhanced")
    opened: list[tuple[str, Any]] = []
    watching = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open" and str(arguments[0]).startswith(str(tmp_path)):
            opened.append((str(arguments[0]), arguments[2]))

    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    sys.addaudithook(watch)
    for series in find_series(tmp_path):
        read_dicom_series(series)
    watching = False
    assert len(opened) >= 12
    assert not [name for name, flags in opened if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)]
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}


def test_a_copied_folder_of_links_is_read(tmp_path: Path) -> None:
    """As datasets under git-annex are: each file a link."""
    for file in write_series(tmp_path / "store"):
        (tmp_path / "linked").mkdir(exist_ok=True)
        (tmp_path / "linked" / file.name).symlink_to(file)
    assert read_dicom_series(tmp_path / "linked").shape == (6, 7, 5)
    shutil.rmtree(tmp_path / "store")
    assert find_series(tmp_path / "linked") == []
