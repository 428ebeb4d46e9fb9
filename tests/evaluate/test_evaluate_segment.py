"""The downstream segmenter: Dice against MONAI's, a task it must learn, and its place on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from scorefusion.cli import app
from scorefusion.errors import ScoreFusionError
from scorefusion.evaluate.output import Store
from scorefusion.evaluate.run import Results
from scorefusion.evaluate.segment import (
    SegmenterSettings,
    dice,
    dice_table,
    find_labels,
    make_network,
    segment,
    train_segmenter,
)
from tests.evaluate.test_evaluate_case import head
from tests.support.tiny import tiny_config, tiny_model

pytest.importorskip("monai")
SETTINGS = SegmenterSettings(steps=80, batch=2, crop=20, channels=(8, 8, 8), learning_rate=0.02)


def blobs(seed: int, shape: tuple[int, int, int] = (18, 20, 22)) -> tuple[np.ndarray, np.ndarray]:
    """A noisy volume whose labels are its two brighter classes."""
    random = np.random.default_rng(seed)
    place = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    distance = np.sqrt(((place - random.uniform(-0.3, 0.3, (3, 1, 1, 1))) ** 2).sum(axis=0))
    labels = np.select([distance < 0.4, distance < 0.7], [2, 1], 0)
    volume = np.array([-1.0, 0.0, 1.0])[labels] + random.normal(0, 0.1, shape)
    return volume.astype(np.float32), labels.astype(np.int64)


def test_dice_matches_monai_and_a_count_by_hand() -> None:
    metrics = pytest.importorskip("monai.metrics")
    random = np.random.default_rng(0)
    found, true = random.integers(0, 3, (2, 6, 7, 8))
    one_hot = [
        torch.nn.functional.one_hot(torch.from_numpy(each)).movedim(-1, 0)[None] for each in (found, true)
    ]
    theirs = metrics.compute_dice(*one_hot, include_background=False)[0]
    for label in (1, 2):
        assert dice(found, true, label) == pytest.approx(float(theirs[label - 1]))
    assert dice(np.array([1, 1, 0, 0]), np.array([1, 0, 1, 0]), 1) == pytest.approx(0.5)
    assert dice(np.array([1, 1]), np.array([0, 0]), 1) is None


def test_it_learns_what_intensity_tells() -> None:
    pairs = [blobs(seed) for seed in range(3)]
    done: list[int] = []
    network = train_segmenter([v for v, _ in pairs], [n for _, n in pairs], 2, SETTINGS, done.append)
    assert done == list(range(1, 81))
    volume, labels = blobs(9, (17, 19, 21))
    found = find_labels(network, volume)
    assert found.shape == labels.shape
    for label in (1, 2):
        score = dice(found, labels, label)
        assert score is not None and score > 0.8
    untrained = dice(find_labels(make_network(2, SETTINGS).eval(), volume), labels, 2)
    assert untrained is not None and untrained < 0.7


def test_training_repeats_and_leaves_the_global_generator_alone() -> None:
    volume, labels = blobs(0)
    settings = SegmenterSettings(steps=2, batch=1, crop=24, channels=(8, 8, 8))
    state = torch.random.get_rng_state()
    one, other = (train_segmenter([volume], [labels], 2, settings) for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def stored(store: Store, names: list[str], rows: dict[str, float], **change: Any) -> Results:
    """Results of subjects whose rows are the truth plus noise of so much."""
    cases, keys = [], []
    for number, name in enumerate(names):
        volume, labels = blobs(10 + number + 100 * len(names))
        cases.append({"name": name, "person": name, "labelled": True, **change})
        keys.append({"truth": f"{name}-truth", "labels": f"{name}-labels"})
        store.put(f"{name}-truth", {}, volume)
        store.put_array(f"{name}-labels", labels * 3)
        for row, noise in rows.items():
            keys[-1][row] = f"{name}-{row}"
            store.put(
                f"{name}-{row}", {}, volume + noise * np.random.default_rng(number).normal(size=volume.shape)
            )
    return Results((), tuple(cases), (), tuple(keys), (), {})


def test_scores_by_label_and_resuming(tmp_path: Path) -> None:
    store = Store(tmp_path)
    training = stored(store, ["a", "b"], {"poor": 1.5})
    testing = stored(store, ["c", "d", "e"], {"good": 0.05, "poor": 1.5})
    calls: list[tuple[int, int]] = []
    arguments = {"rows": ["good", "poor"], "trained_on": ["poor"], "settings": SETTINGS}
    rows = segment(training, testing, store, **arguments, callback=lambda *c: calls.append(c))
    assert calls[-1] == (160, 160) and calls == sorted(calls)
    assert [(row.trained, row.scored) for row in rows] == [
        ("truth", "truth"), ("truth", "good"), ("truth", "poor"), ("poor", "truth"),
    ]  # fmt: skip
    assert all(sorted(row.scores) == [3, 6] for row in rows), "labels keep their own numbers"
    truth, good, poor, learnt = (row.scores[6].mean for row in rows)
    assert truth > 0.8 and good > 0.8 and poor < truth - 0.1 and 0 <= learnt <= 1
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("segmenter*")}
    again = segment(training, testing, store, **arguments)
    assert [row.scores for row in again] == [row.scores for row in rows] and len(kept) == 2
    assert kept == {path: path.stat().st_mtime_ns for path in tmp_path.glob("segmenter*")}
    _, titles, lines = dice_table(rows, "synthetic, 3 subjects", {3: "fluid"})
    assert titles == ["synthetic, 3 subjects: trained on", "scored on", "fluid", "label 6"]
    assert lines[0][:2] == ["truth", "truth"] and "[" in lines[0][2]


def test_rejects_what_it_cannot_score(tmp_path: Path) -> None:
    store = Store(tmp_path)
    training, testing = stored(store, ["a"], {}), stored(store, ["b", "a"], {})
    arguments = {"rows": [], "trained_on": [], "settings": SETTINGS}
    with pytest.raises(ScoreFusionError, match="a is in both sets"):
        segment(training, testing, store, **arguments)
    with pytest.raises(ScoreFusionError, match="subject c has none"):
        segment(training, stored(store, ["c"], {}, labelled=False), store, **arguments)


def test_command_line(tmp_path: Path) -> None:
    for part, names in (("train", ("sub-001", "sub-002")), ("test", ("sub-003",))):
        for name in names:
            place = tmp_path / part / name
            place.mkdir(parents=True)
            volume = head(int(name[-1]))
            nib.save(nib.Nifti1Image(volume, np.eye(4)), place / f"{name}_t1.nii.gz")
            labels = nib.Nifti1Image((volume > 600).astype(np.uint8), np.eye(4))
            nib.save(labels, place / f"{name}_labels.nii.gz")
    tiny_model(tiny_config(strategies=("average",))).save_pretrained(tmp_path / "tiny", card="# tiny")
    given: list[object] = [
        "evaluate",
        tmp_path / "tiny",
        tmp_path / "test",
        "--box",
        "16,16,16",
        "--segmenter",
    ]
    given += ["--segment-train", tmp_path / "train", "--segment-steps", "3", "--no-denoise", "--real"]
    given += ["--without-consistency", "none", "--baselines", "nearest", "-o", tmp_path / "out"]
    done = CliRunner().invoke(app, [*map(str, given), "--device", "cpu"])
    assert done.exit_code == 0, (done.output, done.exception)
    text = (tmp_path / "out/table.md").read_text()
    assert (
        "### Dice of a segmenter" in text and "| average | truth |" in text and "| truth | nearest |" in text
    )
    assert "Dice of a segmenter" in (tmp_path / "out/report.html").read_text()
    wrong = [*map(str, given), "--segment-on", "fuse", "--device", "cpu"]
    done = CliRunner().invoke(app, wrong)
    assert done.exit_code == 2 and "unknown row 'fuse'" in done.stderr
