"""What Lab refuses before it asks any broker."""

import logging

import pytest

from labkit.errors import ConfigurationError
from labkit.lab import Lab


@pytest.mark.parametrize("wrong", ["", "-4", "0 4", "../04", "lab/04", "04\n", "x" * 32, "é", 4, None])
def test_an_id_that_could_not_name_a_virtual_host_is_refused_with_what_is_allowed(wrong: object) -> None:
    with pytest.raises(ConfigurationError, match="allowed: letters, digits and hyphens, such as '04'") as caught:
        Lab(wrong)  # type: ignore[arg-type]
    assert repr(wrong) in str(caught.value)


@pytest.mark.parametrize("right", ["04", "instructor-04", "A", "x" * 31])
def test_an_id_becomes_the_virtual_hosts_name(right: str) -> None:
    with Lab(right) as lab:
        assert lab.virtual_host == f"lab-{right}"


def test_a_lab_that_was_never_used_has_nothing_open(capsys: pytest.CaptureFixture[str]) -> None:
    lab = Lab("unused")
    lab.close()
    lab.close()
    assert capsys.readouterr().out == "nothing left open\n" * 2


@pytest.mark.parametrize(("before", "after"), [(logging.NOTSET, logging.CRITICAL), (logging.DEBUG, logging.DEBUG)])
def test_pika_is_kept_out_of_the_cells_unless_somebody_wants_to_read_it(before: int, after: int) -> None:
    pika = logging.getLogger("pika")
    kept = pika.level
    try:
        pika.setLevel(before)
        with Lab("quiet"):
            assert pika.level == after
    finally:
        pika.setLevel(kept)
