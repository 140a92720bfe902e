"""Every failure of the bench and every exception of Pika, really run: when it happens, who closed, what to do."""

from labkit.lab.atlas.page import Atlas
from labkit.lab.atlas.rows import Row
from labkit.lab.atlas.seen import Seen

__all__ = ["Atlas", "Row", "Seen"]
