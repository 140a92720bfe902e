"""Dropping a Pika connection never raises, however little of it there is."""

import pika.exceptions as px
from pika.adapters.select_connection import SelectConnection

from labkit.connector.abandon import abort


def test_connection_whose_constructor_was_interrupted_at_its_first_line_is_dropped():
    connection = SelectConnection.__new__(SelectConnection)
    abort(connection, px.ConnectionOpenAborted("interrupted while opening"))
    assert vars(connection) == {}
