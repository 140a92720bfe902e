"""What is read from a certificate is what the library that made it reads."""

import datetime
import logging

import pytest
import trustme
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from labkit import ConfigurationError, TlsSettings
from labkit.settings.certificates import Certificate, warn_if_short

NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
DAY = datetime.timedelta(days=1)


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        (NOW - DAY, NOW + DAY),
        (datetime.datetime(1999, 12, 31, tzinfo=datetime.UTC), datetime.datetime(2049, 12, 31, tzinfo=datetime.UTC)),
        (datetime.datetime(2049, 1, 1, tzinfo=datetime.UTC), datetime.datetime(2050, 1, 1, tzinfo=datetime.UTC)),
    ],
)
def test_serial_and_dates_are_those_that_were_written(authority, begin, end):
    pem = authority.issue_cert("mq.example", not_before=begin, not_after=end).cert_chain_pems[0].bytes()
    ours, theirs = Certificate.from_pem(pem.decode()), x509.load_pem_x509_certificate(pem)
    assert (ours.serial, ours.not_before, ours.not_after) == (theirs.serial_number, begin, end)


def test_days_left_are_days_and_negative_afterwards():
    certificate = Certificate(1, NOW - DAY, NOW + 3 * DAY)
    assert certificate.days_left(NOW) == 3.0
    assert certificate.days_left(NOW + 4 * DAY) == -1.0
    assert 2.9 < certificate.days_left() <= 3.0
    assert repr(certificate) == "Certificate()"


@given(st.binary(max_size=60))
def test_bytes_that_are_no_certificate_are_a_value_error(junk):
    with pytest.raises(ValueError, match="not a certificate"):
        Certificate.from_der(junk)


def test_settings_tell_what_their_own_certificate_says_at_this_moment(authority, tmp_path):
    path = tmp_path / "own.pem"
    serials = []
    for name in ("one", "two"):
        issued = authority.issue_cert(name)
        path.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
        from_file, from_data = TlsSettings(cert_file=path), TlsSettings(cert_data=path.read_bytes())
        assert from_file.certificate() == from_data.certificate()
        assert from_data.make_context()
        serials.append(from_file.certificate().serial)
    assert serials[0] != serials[1]
    assert TlsSettings().certificate() is None
    path.write_text("nothing")
    with pytest.raises(ConfigurationError) as caught:
        TlsSettings(cert_file=path).certificate()
    assert caught.value.field == "cert_file"


def test_certificate_that_ends_within_a_month_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING, "labkit"):
        warn_if_short("our own", Certificate(1, NOW, NOW + 31 * DAY))
        assert not caplog.records
        warn_if_short("our own", Certificate(1, NOW, NOW + 29 * DAY))
    (record,) = caplog.records
    assert "our own certificate is out of date in 2" in record.getMessage()
