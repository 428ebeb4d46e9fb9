"""Unattended batch translation with resume, sharding and an HTML report."""

from scorefusion.batch.files import side_path
from scorefusion.batch.items import Item, Outcome, Shard, StopFlag, Stopped
from scorefusion.batch.report import write_report
from scorefusion.batch.run import Event, Limits, Listener
from scorefusion.batch.session import Batch, Summary, translate_batch
from scorefusion.batch.sources import is_batch
from scorefusion.batch.worker import Work, translate_item

__all__ = [
    "Batch",
    "Event",
    "Item",
    "Limits",
    "Listener",
    "Outcome",
    "Shard",
    "StopFlag",
    "Stopped",
    "Summary",
    "Work",
    "is_batch",
    "side_path",
    "translate_batch",
    "translate_item",
    "write_report",
]
