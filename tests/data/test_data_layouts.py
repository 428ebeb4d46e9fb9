"""Every layout: whole subjects are found, broken ones named with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from scorefusion.data import DatasetConfig, Found, find_subjects
from scorefusion.errors import BadInput, ScoreFusionError
from tests.support.look_alikes import AFFINE, BROKEN, LOOK_ALIKES, find_subjects_at, write, write_look_alike


@pytest.mark.parametrize("name", LOOK_ALIKES)
@pytest.mark.parametrize("layout", ["auto", "given"])
def test_whole_subjects_are_found_and_broken_ones_named(tmp_path: Path, name: str, layout: str) -> None:
    like = LOOK_ALIKES[name]
    write_look_alike(tmp_path, like)
    config = DatasetConfig(
        root=str(tmp_path), layout="auto" if layout == "auto" else like.layout, contrasts=like.contrasts
    )
    found = find_subjects(config, voxels=True)
    assert found.layout == like.layout and not found.ignored and not found.people_unknown
    assert [s.name for s in found.subjects] == [like.subject(1), like.subject(2)]
    assert [s.group for s in found.subjects] == [like.group(1), like.group(2)]
    for number, subject in enumerate(found.subjects, start=1):
        paths = [tmp_path / like.path(number, spelled) for spelled in like.spelled]
        assert subject.files == dict(zip(like.contrasts, paths, strict=True))
    assert [r.subject for r in found.refused] == [like.subject(number) for number in BROKEN]
    for (number, reason), refusal in zip(BROKEN.items(), found.refused, strict=True):
        assert reason in refusal.reason and refusal.fix, refusal
        if number != 3:
            assert refusal.file == tmp_path / like.path(number, like.spelled[1])


def test_headers_alone_show_what_headers_can(tmp_path: Path) -> None:
    like = LOOK_ALIKES["BraTS 2021"]
    write_look_alike(tmp_path, like)
    found = find_subjects_at(tmp_path, like.contrasts)
    assert [s.name for s in found.subjects] == [like.subject(number) for number in (1, 2, 4, 7)]
    seen: list[tuple[int, int]] = []
    find_subjects(
        DatasetConfig(root=str(tmp_path), contrasts=like.contrasts),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(done, 6) for done in range(1, 7)]


def test_the_message_for_another_grid_gives_both(tmp_path: Path) -> None:
    like = LOOK_ALIKES["folder"]
    write_look_alike(tmp_path, like)
    refused = {r.subject: r for r in find_subjects_at(tmp_path, like.contrasts).refused}
    text = str(refused["sub-006"])
    assert "8 × 9 × 6 voxels" in text and "8 × 9 × 7 voxels" in text and "\n" not in text
    assert text.count("affine [[1 0 0 -3] [0 1.2 0.1 ") == 2
    text = str(refused["sub-005"])
    assert "[0 1.2 0.1 -3]" in text and "[0 1.2 0.1 -5]" in text


def test_the_first_broken_subject_is_an_error_where_none_may_be_skipped(tmp_path: Path) -> None:
    like = LOOK_ALIKES["IXI"]
    write_look_alike(tmp_path, like)
    with pytest.raises(BadInput, match=r"subject IXI003-Guys-0828 cannot be used: has no t2, only t1"):
        find_subjects(DatasetConfig(root=str(tmp_path), contrasts=like.contrasts, skip_broken=False))


def test_without_contrasts_each_subject_has_what_it_has(tmp_path: Path) -> None:
    like = LOOK_ALIKES["BIDS"]
    write_look_alike(tmp_path, like)
    found = find_subjects_at(tmp_path, ())
    assert {s.name: sorted(s.files) for s in found.subjects}["sub-03"] == ["t1"]
    assert {r.subject for r in found.refused} == {"sub-05", "sub-06"}


def named(found: Found) -> dict[str, list[str]]:
    return {subject.name: sorted(subject.files) for subject in found.subjects}


def test_brats_time_points_are_of_one_person_and_cases_of_any_case_match(tmp_path: Path) -> None:
    for case in ("BraTS-MET-00012-000", "BraTS-MET-00012-003", "brats-ped-00012-000"):
        for contrast in ("t1n", "T1C", "t2w", "t2f", "seg"):
            write(tmp_path / case / f"{case}-{contrast}.nii.gz")
        write(tmp_path / case / f"{case}-t1n-voided.nii.gz")
    found = find_subjects_at(tmp_path, ("t1", "t1c", "t2", "flair", "labels"))
    assert [s.group for s in found.subjects] == ["BraTS-MET-00012", "BraTS-MET-00012", "brats-ped-00012"]
    assert len({s.name for s in found.subjects}) == 3 and len(found.ignored) == 3


def test_hcp_takes_one_version_for_all(tmp_path: Path) -> None:
    for person in ("100307", "100408", "HCA6002236_V1_MR"):
        for contrast in ("T1w", "T2w"):
            write(tmp_path / person / "T1w" / f"{contrast}_acpc_dc_restore_brain.nii.gz")
        write(tmp_path / person / "T1w" / "T1w_acpc_dc.nii.gz")
        write(tmp_path / person / "MNINonLinear" / "T1w_acpc_dc_restore.nii.gz")
        write(tmp_path / person / "T1w" / "aparc+aseg.nii.gz")
    write(tmp_path / "100408" / "T1w" / "T1w_acpc_dc_restore.nii.gz")
    found = find_subjects_at(tmp_path, ("t1", "t2"))
    assert not found.refused and {s.files["t1"].name for s in found.subjects} == {
        "T1w_acpc_dc_restore_brain.nii.gz"
    }
    assert [s.group for s in found.subjects] == ["100307", "100408", "HCA6002236"]
    assert "labels" in found.subjects[0].files
    write(tmp_path / "100408" / "T1w" / "T2w_acpc_dc_restore.nii.gz")
    found = find_subjects_at(tmp_path, ("t1", "t2"))
    assert [s.files["t2"].name for s in found.subjects] == ["T2w_acpc_dc_restore.nii.gz"]
    assert "has no t1 and no t2, only" in found.refused[0].reason and len(found.refused) == 2
    config = DatasetConfig(root=str(tmp_path), contrasts=("t1", "t2"), choose=("restore_brain",))
    assert len(find_subjects(config).subjects) == 3


def test_hcp_in_one_folder_a_person(tmp_path: Path) -> None:
    write(tmp_path / "100206" / "T1w_acpc_dc_restore.nii.gz")
    write(tmp_path / "100206" / "T2w_acpc_dc_restore.nii.gz")
    assert named(find_subjects_at(tmp_path, ("t1", "t2"))) == {"100206": ["t1", "t2"]}


def test_bids_keeps_derivatives_phases_and_contrast_agent_apart(tmp_path: Path) -> None:
    for path in (
        "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz",
        "sub-01/ses-1/anat/sub-01_ses-1_ce-gad_T1w.nii.gz",
        "sub-01/ses-1/anat/sub-01_ses-1_part-phase_T1w.nii.gz",
        "sub-01/ses-1/func/sub-01_ses-1_task-rest_bold.nii.gz",
        "sub-01/ses-2/anat/sub-01_ses-2_t1W.nii.gz",
        "derivatives/prep/sub-01/ses-1/anat/sub-01_ses-1_desc-preproc_T1w.nii.gz",
        "sourcedata/sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz",
    ):
        write(tmp_path / path)
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-01\t33\n")
    found = find_subjects_at(tmp_path, ("T1w",))
    assert named(found) == {"sub-01_ses-1": ["t1", "t1c"], "sub-01_ses-2": ["t1"]}
    assert {s.group for s in found.subjects} == {"sub-01"} and len(found.ignored) == 4
    inside = find_subjects_at(tmp_path / "derivatives" / "prep", ("t1",))
    assert named(inside) == {"sub-01_ses-1": ["t1"]}


def test_two_runs_are_named_and_chosen(tmp_path: Path) -> None:
    for run in (1, 2):
        write(tmp_path / f"sub-01/anat/sub-01_run-{run}_T1w.nii.gz")
    write(tmp_path / "sub-01/anat/sub-01_T2w.nii.gz")
    write(tmp_path / "sub-02/anat/sub-02_T1w.nii.gz")
    write(tmp_path / "sub-02/anat/sub-02_T2w.nii.gz")
    found = find_subjects_at(tmp_path, ("t1", "t2"))
    assert named(found) == {"sub-02": ["t1", "t2"]}
    reason = found.refused[0].reason
    assert reason.startswith("has 2 files of t1: ") and "run-1_T1w" in reason and "run-2_T1w" in reason
    assert "choose" in found.refused[0].fix
    config = DatasetConfig(root=str(tmp_path), contrasts=("t1", "t2"), choose=("RUN-2",))
    chosen = find_subjects(config).subjects
    assert chosen[0].files["t1"].name == "sub-01_run-2_T1w.nii.gz" and len(chosen) == 2
    only_t2 = find_subjects_at(tmp_path, ("t2",)).subjects
    assert sorted(only_t2[0].files) == ["t2"]


def test_fastmri_says_that_it_does_not_know_persons(tmp_path: Path) -> None:
    for name in ("AXT2_200_2000019", "AXT1POST_201_6002780", "AXT1PRE_200_6002079", "AXT2_205_2050121_rss"):
        write(tmp_path / "multicoil_train" / f"file_brain_{name}.nii.gz")
    write(tmp_path / "multicoil_train" / "file_brain_AXT2_200_2000019_mask.nii.gz")
    found = find_subjects_at(tmp_path, ("t2",))
    assert sorted(named(found)) == ["200_2000019", "205_2050121"] and len(found.ignored) == 1
    assert "fastMRI names scans, not persons" in found.people_unknown
    with pytest.raises(BadInput, match="no split by person can be made: fastMRI names scans"):
        find_subjects(DatasetConfig(root=str(tmp_path), contrasts=("t2",), split="train"))
    (tmp_path / "patients.csv").write_text(
        "file,patient_id\nfile_brain_AXT2_200_2000019.h5,ab\nx/file_brain_AXT1POST_201_6002780.nii.gz,ab\n"
        "file_brain_AXT1PRE_200_6002079,cd\n"
    )
    found = find_subjects_at(tmp_path, ("t2",))
    assert named(found) == {"ab": ["t1c", "t2"]} and not found.people_unknown
    assert {r.subject: r.reason for r in found.refused} == {
        "file_brain_AXT2_205_2050121": "is not in patients.csv",
        "cd": "has no t2, only t1",
    }


def test_plain_folders_of_other_contrasts(tmp_path: Path) -> None:
    write(tmp_path / "A" / "x1.nii.gz")
    write(tmp_path / "B" / "x1_b.nii.gz")
    write(tmp_path / "B" / "x1" / "x1_adc.nii.gz")
    write(tmp_path / "p_7_seg.nii.gz")
    assert named(find_subjects_at(tmp_path, ("A", "B"))) == {"x1": ["a", "adc", "b"]}
    assert named(find_subjects_at(tmp_path, ("labels",))) == {"p_7": ["labels"]}


def test_a_single_file_is_a_subject(tmp_path: Path) -> None:
    path = write(tmp_path / "head.nii.gz")
    found = find_subjects_at(path, ("t1",))
    assert (found.subjects[0].name, found.subjects[0].files) == ("head", {"t1": path})
    with pytest.raises(BadInput, match=r"head: .*has no t2, only t1"):
        find_subjects_at(path, ("t1", "t2"))


def test_labels_alone_do_not_lead(tmp_path: Path) -> None:
    """Without contrasts given the grid of an image counts, not that of the label map."""
    write(tmp_path / "s_labels.nii.gz", affine=AFFINE * 1.1)
    write(tmp_path / "s_t2.nii.gz")
    with pytest.raises(BadInput, match=r"s_labels.nii.gz: lies on another grid than s_t2"):
        find_subjects(DatasetConfig(root=str(tmp_path)))


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        find_subjects_at(tmp_path / "gone", ("t1",))
    with pytest.raises(BadInput, match="holds no subject with t1 in layout 'folder' and no NIfTI file"):
        find_subjects_at(tmp_path, ("t1",))
    write(tmp_path / "odd.nii.gz")
    with pytest.raises(BadInput, match=r"but 1 NIfTI file\(s\), such as odd.nii.gz"):
        find_subjects_at(tmp_path, ("t1",))
    (tmp_path / "text.txt").write_text("")
    for path, layout in (
        (tmp_path / "text.txt", "auto"),
        (tmp_path, "csv"),
        (tmp_path / "odd.nii.gz", "bids"),
    ):
        with pytest.raises(BadInput, match=r"needs"):
            find_subjects(DatasetConfig(root=str(path), layout=layout))


@pytest.mark.parametrize(
    "wrong",
    [
        {"contrasts": ("t1", "T1w")},
        {"fractions": (0.8, 0.1, 0.2)},
        {"fractions": (1.2, -0.1, -0.1)},
        {"tolerance": -1},
        {"layout": "dicom"},
        {"contrast": "t1"},
    ],
)
def test_a_description_is_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError) as error:
        DatasetConfig.model_validate({"root": ".", **wrong})
    assert not isinstance(error.value, ScoreFusionError)
