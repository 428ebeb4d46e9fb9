"""Train a model in stages: examples, losses, checkpoints that resume to the same bits, reports."""

from scorefusion.train.config import TrainConfig
from scorefusion.train.estimate import describe, dry_run
from scorefusion.train.failure import replay
from scorefusion.train.loop import train
from scorefusion.train.report import read_rows, training_card
from scorefusion.train.sources import domain_of
from scorefusion.train.step import is_first

__all__ = [
    "TrainConfig",
    "describe",
    "domain_of",
    "dry_run",
    "is_first",
    "read_rows",
    "replay",
    "train",
    "training_card",
]
