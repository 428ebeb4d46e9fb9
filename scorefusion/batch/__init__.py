"""Unattended batch translation with resume, sharding and an HTML report."""

# ruff: noqa: F403
from typing import TYPE_CHECKING

from scorefusion.optional import lazily

if TYPE_CHECKING:
    from scorefusion.batch.items import *
    from scorefusion.batch.report import *
    from scorefusion.batch.run import *
    from scorefusion.batch.session import *
    from scorefusion.batch.sources import *
    from scorefusion.batch.worker import *

__all__, __getattr__ = lazily(
    __name__,
    {
        "items": "Item Outcome Shard StopFlag Stopped",
        "report": "write_report",
        "run": "Event Limits Listener",
        "session": "Batch Summary translate_batch",
        "sources": "is_batch",
        "worker": "Work translate_item",
    },
)
