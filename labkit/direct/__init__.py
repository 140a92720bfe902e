"""``SyncConnection`` and ``AsyncConnection``: one owner, no thread of ours."""

from labkit.direct.aio import AsyncConnection
from labkit.direct.sync import SyncConnection

__all__ = ["AsyncConnection", "SyncConnection"]
