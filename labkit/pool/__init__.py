"""``ConnectionPool`` and ``ChannelPool``: a strict maximum, a fair line, leases."""

from labkit.pool.channels import ChannelPool
from labkit.pool.checks import ask_broker
from labkit.pool.connections import ConnectionPool
from labkit.pool.lease import Lease
from labkit.pool.stats import PoolStats

__all__ = ["ChannelPool", "ConnectionPool", "Lease", "PoolStats", "ask_broker"]
