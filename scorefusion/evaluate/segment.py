"""A downstream task: a 3D U-Net finds label maps, trained on true or on translated volumes (MONAI)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scorefusion.errors import ScoreFusionError, out_of_memory
from scorefusion.evaluate.output import Store
from scorefusion.evaluate.report import Table, interval_text
from scorefusion.evaluate.run import Progress, Results, Work
from scorefusion.evaluate.statistics import Estimate, by_person, interval
from scorefusion.io.atomic import written_beside
from scorefusion.metrics import Metric
from scorefusion.optional import need

TRUTH = "truth"
DICE = Metric("dice", "Dice", lambda pair: None)
VERSION = 2  #: goes up when training changes, which makes stored segmenters void


@dataclass(frozen=True)
class SegmenterSettings:
    """The network and its training."""

    steps: int = 300  #: of Adam, with a cosine decay of the learning rate to 0
    batch: int = 2  #: crops a step
    crop: int = 48  #: their edge in voxels, a multiple of 4
    channels: tuple[int, int, int] = (16, 32, 64)  #: of the U-Net's three levels
    learning_rate: float = 3e-3  #: at the start
    seed: int = 0  #: of the weights and crops


@dataclass(frozen=True, eq=False)
class DiceRow:
    """Dice scores of one segmenter on one kind of volume."""

    trained: str  #: ``truth``, or the row whose translations it was trained on
    scored: str  #: the same of the volumes it was given
    scores: dict[int, Estimate] = field(default_factory=dict)  #: label to its mean over persons who have it


def segment(
    training: Results,
    testing: Results,
    store: Store,
    *,
    rows: Sequence[str],
    trained_on: Sequence[str],
    settings: SegmenterSettings,
    callback: Progress | None = None,
) -> list[DiceRow]:
    """Train on true volumes, score on these and on ``rows``; train on ``trained_on``, score on true ones."""
    need("monai", "a segmenter")
    both = sorted({*training.persons} & {*testing.persons})
    if both:
        names = ", ".join(both[:3])
        raise ScoreFusionError(f"a segmenter is trained on other subjects; {names} is in both sets")
    for results in (training, testing):
        bare = [str(case["name"]) for case in results.cases if not case["labelled"]]
        if bare:
            raise ScoreFusionError(f"a segmenter needs label maps; subject {bare[0]} has none")
    labels = sorted({int(n) for each in training.keys for n in np.unique(_labels(store, each))} - {0})
    if not labels:
        raise ScoreFusionError("the training subjects' label maps hold nothing but 0 in their boxes")
    work = Work(callback, settings.steps * (1 + len(trained_on)))
    found = []
    for source in (TRUTH, *trained_on):
        network = _trained(training, source, labels, store, settings, work)
        for target in [TRUTH, *rows] if source == TRUTH else [TRUTH]:
            found.append(DiceRow(source, target, _score(network, testing, target, labels, store)))
    return found


def dice_table(rows: Sequence[DiceRow], head: str, names: Mapping[int, str]) -> Table:
    """A table of Dice scores with their intervals."""
    labels = list(dict.fromkeys(label for row in rows for label in row.scores))
    titles = [f"{head}: trained on", "scored on", *(names.get(label, f"label {label}") for label in labels)]
    lines = [
        [row.trained, row.scored]
        + [interval_text(row.scores[label], DICE) if label in row.scores else "" for label in labels]
        for row in rows
    ]
    return Table("Dice of a segmenter", titles, lines)


def dice(found: np.ndarray, true: np.ndarray, label: int) -> float | None:
    """``2 |A and B| / (|A| + |B|)`` of one label; None where the truth has none of it."""
    here, there = found == label, true == label
    if not there.any():
        return None
    return float(2.0 * (here & there).sum() / (here.sum() + there.sum()))


def make_network(labels: int, settings: SegmenterSettings) -> nn.Module:
    """MONAI's 3D U-Net: one channel in, background and ``labels`` out, one residual unit a level."""
    unet = need("monai.networks.nets", "a segmenter").UNet
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network: nn.Module = unet(
            spatial_dims=3, in_channels=1, out_channels=labels + 1, channels=settings.channels,
            strides=(2, 2), num_res_units=1,
        )  # fmt: skip
    return network


def train_segmenter(
    volumes: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    count: int,
    settings: SegmenterSettings,
    callback: Callable[[int], None] | None = None,
) -> nn.Module:
    """Train on random crops by Dice and cross entropy; return the network in evaluation mode.

    Volumes ``[d, h, w]`` are float32, normalised; their labels 0 .. count. Every label is in the middle as
    often, half of the crops are flipped left to right.
    """
    network = make_network(count, settings).train()
    loss = need("monai.losses", "a segmenter").DiceCELoss(to_onehot_y=True, softmax=True)
    optimiser = torch.optim.Adam(network.parameters(), settings.learning_rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.steps)
    random = np.random.default_rng(settings.seed)
    for step in range(1, settings.steps + 1):
        crops = [_crop(volumes, labels, settings.crop, random) for _ in range(settings.batch)]
        x, y = (torch.from_numpy(np.stack(each))[:, None] for each in zip(*crops, strict=True))
        optimiser.zero_grad(set_to_none=True)
        loss(network(x.float()), y.long()).backward()
        optimiser.step()
        decay.step()
        if callback is not None:
            callback(step)
    return network.eval()


@torch.no_grad()
def find_labels(network: nn.Module, volume: np.ndarray) -> np.ndarray:
    """The most likely label 0 .. count of every voxel of a normalised volume ``[d, h, w]``."""
    x = torch.from_numpy(np.ascontiguousarray(volume, np.float32))[None, None]
    d, h, w = volume.shape
    padded = F.pad(x, (0, -w % 4, 0, -h % 4, 0, -d % 4), mode="replicate")
    scores: Tensor = network(padded)
    return scores[0, :, :d, :h, :w].argmax(dim=0).numpy()


def _trained(
    training: Results,
    source: str,
    labels: Sequence[int],
    store: Store,
    settings: SegmenterSettings,
    work: Work,
) -> nn.Module:
    key = store.key(
        f"segmenter {source}", keys=[(each[source], each["labels"]) for each in training.keys],
        labels=list(labels), settings=asdict(settings), training=VERSION,
    )  # fmt: skip
    file = store.folder / f"{key}.safetensors"
    network = make_network(len(labels), settings)
    if file.is_file():
        try:
            network.load_state_dict(load_file(file))
        except (SafetensorError, OSError, RuntimeError) as error:
            if out_of_memory(error):
                raise
        else:
            work.add(settings.steps)
            return network.eval()
    volumes = [store.volume(each[source]) for each in training.keys]
    maps = [_numbered(_labels(store, each), labels) for each in training.keys]
    network = train_segmenter(volumes, maps, len(labels), settings, lambda _: work.add())
    with written_beside(file) as beside:
        save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, beside)
    return network


def _score(
    network: nn.Module, testing: Results, target: str, labels: Sequence[int], store: Store
) -> dict[int, Estimate]:
    maps = [find_labels(network, store.volume(each[target])) for each in testing.keys]
    true = [_numbered(_labels(store, each), labels) for each in testing.keys]
    found = {}
    for number, label in enumerate(labels, start=1):
        each = [dice(one, other, number) for one, other in zip(maps, true, strict=True)]
        kept = [(value, who) for value, who in zip(each, testing.persons, strict=True) if value is not None]
        if kept:
            found[label] = interval(by_person([value for value, _ in kept], [who for _, who in kept]))
    return found


def _labels(store: Store, keys: Mapping[str, str]) -> np.ndarray:
    return np.asarray(store.array(keys["labels"]), np.int64)


def _numbered(values: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """Labels as 1, 2, ... in their order; any other value is background."""
    return np.select([values == label for label in labels], list(range(1, len(labels) + 1)), 0)


def _crop(
    volumes: Sequence[np.ndarray], labels: Sequence[np.ndarray], edge: int, random: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """A crop around a voxel of a random label, so that rare ones are seen too; edges are replicated."""
    which = int(random.integers(len(volumes)))
    volume, label = volumes[which], labels[which]
    short = [(0, max(0, edge - length)) for length in volume.shape]
    if any(after for _, after in short):
        volume, label = (np.pad(array, short, mode="edge") for array in (volume, label))
    here = np.flatnonzero(label == random.choice(np.unique(label)))
    middle = np.unravel_index(int(random.choice(here)), label.shape)
    shift = random.integers(-(edge // 4), edge // 4 + 1, 3)
    start = [
        int(np.clip(at + by - edge // 2, 0, length - edge))
        for at, by, length in zip(middle, shift, volume.shape, strict=True)
    ]
    z, y, x = (slice(at, at + edge) for at in start)
    flip = slice(None, None, -1 if random.random() < 0.5 else 1)
    return tuple(np.ascontiguousarray(array[z, y, x][:, :, flip]) for array in (volume, label))
