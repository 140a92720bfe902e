"""The lab's certificate authority: what it signs, who may read it, when it is made anew. No broker here."""

import os
import re
import ssl
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from typer.testing import CliRunner

from labkit.brokers import certificates
from labkit.brokers.certificates import ELSEWHERE, FLAWED, RENEW_BEFORE, SERVER_NAMES, LabCertificates, Pair
from labkit.errors import BrokerError, ConfigurationError
from labkit.lab.commands import app
from labkit.settings.tls import TlsSettings

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")


@pytest.fixture
def shelf(tmp_path: Path) -> LabCertificates:
    return LabCertificates(tmp_path / "bench")


def read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def handshake(server: Pair, ca_file: Path, name: str, client: Pair | None = None) -> None:
    """Shake hands in memory, with our own verifying context on the client's side."""
    shown = {"cert_file": str(client.cert_file), "key_file": str(client.key_file)} if client else {}
    ours = TlsSettings(ca_file=str(ca_file), **shown).make_context()
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(*server)
    if client:
        theirs.verify_mode = ssl.CERT_REQUIRED
        theirs.load_verify_locations(ca_file)
    to_them, to_us = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        ours.wrap_bio(to_us, to_them, server_hostname=name),
        theirs.wrap_bio(to_them, to_us, server_side=True),
    ]
    for _ in range(4):
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert all(side.version() for side in sides)


@pytest.mark.parametrize("name", SERVER_NAMES)
def test_the_servers_certificate_passes_every_check_under_each_of_its_names(shelf: LabCertificates, name: str) -> None:
    handshake(shelf.server(), shelf.ca_file, name)


@pytest.mark.parametrize(
    ("flaw", "complaint"),
    [
        ("expired", "certificate has expired"),
        ("not-yet-valid", "certificate is not yet valid"),
        ("wrong-name", "Hostname mismatch"),
        ("other-ca", "unable to get local issuer certificate"),
    ],
)
def test_each_flawed_certificate_is_refused_for_its_flaw(shelf: LabCertificates, flaw: str, complaint: str) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=complaint):
        handshake(shelf.server(flaw), shelf.ca_file, "localhost")


def test_a_flaw_is_the_only_thing_wrong_with_a_flawed_certificate(shelf: LabCertificates) -> None:
    handshake(shelf.server("wrong-name"), shelf.ca_file, ELSEWHERE)
    handshake(shelf.server("other-ca"), shelf.directory / "impostor-ca.pem", "localhost")


def test_a_client_is_known_by_the_common_name_of_its_certificate(shelf: LabCertificates) -> None:
    client = shelf.client("alice")
    assert read(client.cert_file).subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value == "alice"
    handshake(shelf.server(), shelf.ca_file, "localhost", client)


def test_a_stranger_is_refused_by_a_server_that_trusts_the_labs_authority(shelf: LabCertificates) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(shelf.server(), shelf.ca_file, "localhost", shelf.stranger("alice"))


@posix
def test_the_directory_and_every_key_but_the_servers_are_for_their_owner_alone(shelf: LabCertificates) -> None:
    shelf.make()
    shelf.client("alice")
    shelf.stranger("alice")
    assert shelf.directory.stat().st_mode & 0o777 == 0o700
    assert shelf.directory.parent.stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in shelf.directory.glob("*.key")}
    assert len(modes) == 9
    assert modes.pop("server.key") == 0o644
    assert set(modes.values()) == {0o600}


def test_what_was_made_once_is_kept(shelf: LabCertificates) -> None:
    shelf.make()
    shelf.client("alice")
    before = {path.name: path.read_bytes() for path in shelf.directory.iterdir()}
    again = LabCertificates(shelf.directory.parent)
    again.make()
    again.client("alice")
    assert {path.name: path.read_bytes() for path in shelf.directory.iterdir()} == before
    assert len(before) == 17, sorted(before)  # two authorities, six certificates, a key each, the lock


class Later(datetime):
    """A clock that is ahead by LEAP."""

    leap = timedelta()

    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + cls.leap


@pytest.mark.parametrize(
    ("days", "made_anew"),
    [(330, set()), (336, {"server", "client-alice", "wrong-name", "other-ca", "not-yet-valid"})],
)
def test_what_is_about_to_lose_its_sense_is_made_anew(
    shelf: LabCertificates, monkeypatch: pytest.MonkeyPatch, days: int, made_anew: set[str]
) -> None:
    def serials() -> dict[str, int]:
        shelf.make()
        shelf.client("alice")
        return {path.stem: read(path).serial_number for path in shelf.directory.glob("*.pem")}

    before = serials()
    monkeypatch.setattr(Later, "leap", timedelta(days=days))
    monkeypatch.setattr(certificates, "datetime", Later)
    after = serials()
    assert {name for name in before if before[name] != after[name]} == made_anew


@pytest.mark.parametrize("spoil", ["ca.pem", "ca.key", "server.pem", "server.key"])
@pytest.mark.parametrize("how", ["gone", "rubbish", "another's"])
def test_files_that_do_not_belong_together_are_made_anew(
    shelf: LabCertificates, tmp_path: Path, spoil: str, how: str
) -> None:
    shelf.server()
    if how == "gone":
        (shelf.directory / spoil).unlink()
    elif how == "rubbish":
        (shelf.directory / spoil).write_text("not PEM")
    else:
        other = LabCertificates(tmp_path / "other")
        other.server()
        (other.directory / spoil).replace(shelf.directory / spoil)
    handshake(shelf.server(), shelf.ca_file, "localhost")


def test_renewing_gives_the_server_a_new_serial_and_key_in_the_same_files(shelf: LabCertificates) -> None:
    old = shelf.server()
    serial, key = read(old.cert_file).serial_number, old.key_file.read_bytes()
    new = shelf.renew_server()
    assert new == old
    assert read(new.cert_file).serial_number != serial
    assert new.key_file.read_bytes() != key
    assert shelf.server() == new
    handshake(new, shelf.ca_file, "localhost")


def test_the_list_tells_subject_names_and_days_and_makes_nothing(shelf: LabCertificates) -> None:
    assert shelf.issued() == ()
    assert not shelf.directory.exists()
    shelf.make()
    told = {each.path.stem: each for each in shelf.issued()}
    assert set(told) == {"ca", "impostor-ca", "server", *FLAWED}
    assert told["server"].names == SERVER_NAMES
    assert RENEW_BEFORE.days < told["server"].days_left <= 365
    assert told["expired"].days_left < 0
    assert "O=labkit" in told["ca"].subject


def test_what_is_shown_holds_no_directory_and_no_key(shelf: LabCertificates) -> None:
    shelf.server()
    assert repr(shelf) == "<LabCertificates>"
    assert repr(shelf.server()) == "<certificate server>"
    assert str(shelf.directory) not in repr(shelf.issued())


@pytest.mark.parametrize("name", ["", "../up", "a/b", "a b", "-a", "é", "x" * 65, None, "a\n"])
def test_a_common_name_that_fits_no_file_is_refused_by_name(shelf: LabCertificates, name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"common_name: allowed: 1 to 64 letters"):
        shelf.client(name)
    assert not shelf.directory.exists()


def test_an_unknown_flaw_is_refused_with_those_there_are(shelf: LabCertificates) -> None:
    with pytest.raises(ConfigurationError, match=r"expired, not-yet-valid, wrong-name, other-ca, not 'revoked'"):
        shelf.server("revoked")


@pytest.mark.slow
def test_two_processes_that_begin_at_once_agree_on_one_authority(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from labkit.brokers.certificates import LabCertificates\n"
        "shelf = LabCertificates(Path(sys.argv[1])); shelf.server(); print(shelf.ca_file.read_text())"
    )
    starting = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = {each.communicate(timeout=60)[0] for each in starting}
    assert len(said) == 1
    assert "BEGIN CERTIFICATE" in said.pop()
    handshake(LabCertificates(tmp_path).server(), LabCertificates(tmp_path).ca_file, "localhost")


def labkit(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["certs", *words])
    assert done.exit_code == code, done.output
    return done.output


def test_the_command_makes_them_and_shows_subject_days_and_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = labkit("make", "--home", "bench", "--client", "alice", "--client", "bob")
    assert said == labkit("show", "--home", "bench")
    assert re.search(r"^OU=server,O=labkit +36\d days left +bench/certificates/server\.pem$", said, re.MULTILINE)
    assert re.search(r"^CN=bob,OU=client-bob,O=labkit +36\d days left", said, re.MULTILINE)
    assert re.search(r"^OU=expired,O=labkit +expired 36\d days ago", said, re.MULTILINE)
    assert str(tmp_path) not in said
    assert "PRIVATE" not in said
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert re.search(r" certificates/server\.pem$", labkit("show", "--home", str(tmp_path / "bench")), re.MULTILINE)


def test_the_command_says_where_certificates_come_from_when_there_are_none(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match="`labkit certs make` makes them"):
        CliRunner().invoke(app, ["certs", "show", "--home", str(tmp_path)], catch_exceptions=False)


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_a_bench_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(BrokerError, match="make it writable"):
        LabCertificates(tmp_path).server()
