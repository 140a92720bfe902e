"""The TLS listener's promises in full counts, on every RabbitMQ version."""

import pytest

from labkit import brokers
from tests.broker.test_tls_rotation import rotate_under_traffic
from tests.soak.measured import write_table
from tests.soak.versions import VERSIONS, why_not

pytestmark = [pytest.mark.soak, pytest.mark.broker, pytest.mark.own_broker, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def table():
    rows: list[list[object]] = []
    yield rows
    write_table("rotation soak", ["RabbitMQ", "confirmed", "rotations", "lost", "sent again", "arrived twice"], rows)


@pytest.mark.skipif(bool(why_not()), reason=why_not())
@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.number)
def test_ten_thousand_messages_flow_while_the_certificate_is_renewed_three_times(version, table):
    with brokers.own("local", rootfs=version.unpack()) as broker:
        counts = rotate_under_traffic(broker, broker.settings(tls=True), messages=10_000, rotations=3)
    table.append([version.number, *counts.values()])
