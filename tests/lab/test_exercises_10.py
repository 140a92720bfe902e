"""The check of notebook 10 tells a repaired context from each of the ways to repair half of it. No broker."""

import ssl
import warnings

import pytest

from labkit import TlsSettings
from labkit.lab.checks import find_exercise, judge


def judged(answer):
    return judge(find_exercise("10.1"), answer)


def naive(ca_file, cert_file, key_file):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def loads_and_checks_nothing(ca_file, cert_file, key_file):
    context = naive(ca_file, cert_file, key_file)
    context.load_verify_locations(ca_file)
    context.load_cert_chain(cert_file, key_file)
    return context


def checks_and_trusts_nobody(ca_file, cert_file, key_file):
    context = naive(ca_file, cert_file, key_file)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def forgets_the_name(ca_file, cert_file, key_file):
    context = loads_and_checks_nothing(ca_file, cert_file, key_file)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def shows_no_certificate(ca_file, cert_file, key_file):
    return ssl.create_default_context(cafile=ca_file)


def swaps_the_files(ca_file, cert_file, key_file):
    context = ssl.create_default_context(cafile=ca_file)
    context.load_cert_chain(key_file, cert_file)
    return context


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (naive, "step 1: it lets in an impostor"),
        (loads_and_checks_nothing, "step 1: it lets in an impostor"),
        (checks_and_trusts_nobody, "step 1: now it refuses the broker too"),
        (forgets_the_name, "step 2"),
        (shows_no_certificate, "step 3"),
        (swaps_the_files, "raised SSLError"),
        (lambda ca_file, cert_file, key_file: None, "returned a NoneType"),
        (lambda ca_file: None, "TypeError"),
    ],
)
def test_a_context_that_is_repaired_in_part_is_told_the_step_that_is_missing(answer, hint):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        verdict = judged(answer)
    assert not verdict.passed
    assert hint in verdict.reason


def by_hand(ca_file, cert_file, key_file):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca_file)
    context.load_cert_chain(cert_file, key_file)
    return context


def by_default(ca_file, cert_file, key_file):
    context = ssl.create_default_context(cafile=ca_file)
    context.load_cert_chain(cert_file, key_file)
    return context


def by_labkit(ca_file, cert_file, key_file):
    return TlsSettings(ca_file=ca_file, cert_file=cert_file, key_file=key_file).make_context()


@pytest.mark.parametrize("answer", [by_hand, by_default, by_labkit])
def test_every_way_to_repair_it_passes(answer):
    verdict = judged(answer)
    assert verdict.passed, verdict.reason
