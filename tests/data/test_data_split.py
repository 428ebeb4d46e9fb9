"""Splits go by person, do not change when others come, and come near their fractions."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest

from scorefusion.data import DatasetConfig, find_subjects
from scorefusion.data.dataset import better_seed, split_of
from scorefusion.errors import BadInput
from tests.support.look_alikes import write

FRACTIONS = (0.7, 0.2, 0.1)


def test_sizes_are_binomial_about_the_fractions() -> None:
    """Within 4 standard deviations for each of 20 seeds: a chance of 0.4% to fail, drawn once and for all."""
    n = 2000
    for seed in range(20):
        counts = Counter(split_of(f"sub-{i:04d}", FRACTIONS, seed) for i in range(n))
        for split, share in zip(("train", "validation", "test"), FRACTIONS, strict=True):
            assert abs(counts[split] - n * share) < 4 * math.sqrt(n * share * (1 - share))


def test_seeds_divide_independently() -> None:
    names = [f"sub-{i:04d}" for i in range(4000)]
    both = sum(split_of(n, (0.5, 0.5, 0), 0) == split_of(n, (0.5, 0.5, 0), 1) for n in names)
    assert abs(both - 2000) < 4 * math.sqrt(1000)


def test_a_larger_share_of_training_takes_nobody_out_of_it() -> None:
    names = [f"sub-{i:04d}" for i in range(500)]
    small = {n for n in names if split_of(n, (0.5, 0.25, 0.25), 3) == "train"}
    large = {n for n in names if split_of(n, (0.8, 0.1, 0.1), 3) == "train"}
    assert small < large


def test_an_empty_share_gets_nobody() -> None:
    for fractions in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 0, 0.5), (0.5, 0.5, 0)):
        found = {split_of(str(i), fractions, 0) for i in range(300)}
        assert found == {s for s, f in zip(("train", "validation", "test"), fractions, strict=True) if f}


def sessions(root: Path, persons: range) -> None:
    for person in persons:
        for session in (1, 2, 3):
            name = f"sub-{person:02d}_ses-{session}"
            write(root / name / f"{name}_t1.nii.gz")


def test_sessions_stay_together_and_splits_are_a_partition(tmp_path: Path) -> None:
    sessions(tmp_path, range(30))
    config = DatasetConfig(root=str(tmp_path), contrasts=("t1",), fractions=(0.5, 0.25, 0.25), seed=4)
    parts = {
        split: {s.name for s in find_subjects(config.model_copy(update={"split": split})).subjects}
        for split in ("train", "validation", "test")
    }
    everyone = {s.name for s in find_subjects(config).subjects}
    assert set.union(*parts.values()) == everyone and sum(map(len, parts.values())) == 90
    persons = [{name.split("_")[0] for name in part} for part in parts.values()]
    assert not (persons[0] & persons[1] or persons[0] & persons[2] or persons[1] & persons[2])
    sessions(tmp_path, range(30, 60))
    for split, before in parts.items():
        after = {s.name for s in find_subjects(config.model_copy(update={"split": split})).subjects}
        assert before == after & everyone


def test_an_empty_split_says_which_seed_fills_it(tmp_path: Path) -> None:
    sessions(tmp_path, range(4))
    names = [f"sub-{i:02d}" for i in range(4)]
    seed = next(s for s in range(99) if "test" not in {split_of(n, (0.5, 0.25, 0.25), s) for n in names})
    config = DatasetConfig(root=str(tmp_path), fractions=(0.5, 0.25, 0.25), seed=seed, split="test")
    with pytest.raises(BadInput, match=r"split test \(25% of 4 persons, seed \d+\) is empty") as error:
        find_subjects(config)
    better = better_seed(names, config.fractions)
    assert better is not None and f"Set seed = {better}" in str(error.value)
    assert len(find_subjects(config.model_copy(update={"seed": better})).subjects) in (3, 6)
    assert better_seed(["one"], (0.5, 0.25, 0.25)) is None


def test_a_tables_own_splits_count(tmp_path: Path) -> None:
    write(tmp_path / "x.nii.gz")
    lines = [f"s{i},x.nii.gz,{('train', 'validation', 'test')[i % 3]}" for i in range(9)]
    (tmp_path / "list.csv").write_text("subject,t1,split\n" + "\n".join(lines))
    config = DatasetConfig(root=str(tmp_path / "list.csv"), split="test")
    assert [s.name for s in find_subjects(config).subjects] == ["s2", "s5", "s8"]
