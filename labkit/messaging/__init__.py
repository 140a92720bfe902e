"""``Publisher`` and ``Consumer``, which live on a connection that recovers."""

from labkit.messaging.confirmations import Confirmation, Outcome
from labkit.messaging.consumer import Consumer
from labkit.messaging.publisher import Publisher

__all__ = ["Confirmation", "Consumer", "Outcome", "Publisher"]
