"""The same question to every driver of a bring-up, blocking, awaited and in callbacks: the answers are the same."""

import contextlib
import itertools
import socket
import sys
import threading
from pathlib import Path

import pytest

from labkit import TlsSettings
from tests.broker.drivers import ALL, CANCELLED, ON_A_LOOP, WAITING, ask, ask_all
from tests.broker.test_factory import black_hole, refused_port, rude_server, silent_peer

pytestmark = [pytest.mark.broker, pytest.mark.slow]
SLACK = 2.0  # seconds a deadline may be late on a busy machine
OPENED = ["ConnectAttempted", "ConnectionOpened"]
FAILED = ["ConnectAttempted", "AttemptFailed"]


def told(answers, *facts):
    """Of each answer these facts."""
    return {driver: {fact: answer[fact] for fact in facts} for driver, answer in answers.items()}


def alike(drivers=ALL, **facts):
    return dict.fromkeys(drivers, facts)


def all_in_family(answers):
    return [driver for driver, answer in answers.items() if not answer["is_told_in_family"]] == []


@contextlib.contextmanager
def only_on_ipv6(settings):
    """A port of ``::1``, and of no other address, behind which is the broker."""
    server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    links = []

    def pump(source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def serve():
        with contextlib.suppress(OSError):
            while True:
                near, _ = server.accept()
                far = socket.create_connection(settings.addresses[0])
                for ends in ((near, far), (far, near)):
                    thread = threading.Thread(target=pump, args=ends)
                    thread.start()
                    links.append((thread, near, far))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(10)
        for thread, *ends in links:
            for end in ends:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            thread.join(10)
            for end in ends:
                end.close()


has_ipv6 = pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")


def test_a_good_broker_is_opened_at_once(settings):
    assert told(ask_all(settings), "events", "error") == alike(events=OPENED, error=None)


@pytest.mark.parametrize("trap", [refused_port, silent_peer, black_hole])
def test_a_first_host_that_is_dead_does_not_hide_the_second(settings, trap):
    host, port = settings.addresses[0]
    with trap() as dead:
        hosts = (f"127.0.0.1:{dead}", f"{host}:{port}")
        answers = ask_all(settings.replace(hosts=hosts, connect_deadline=6.0))
    assert told(answers, "events", "error") == alike(events=FAILED + OPENED, error=None)


TRAPS = {"refuses": refused_port, "is silent": silent_peer, "loses packets": black_hole, "hangs up": rude_server}


@pytest.mark.parametrize("ways", [*itertools.combinations([*TRAPS, "has no name"], 2)], ids=", then ".join)
def test_whatever_the_hosts_do_every_attempt_end_and_pause_is_told_alike(settings, ways):
    host, port = settings.addresses[0]
    in_process = tuple(each for each in ALL if each != "twisted")
    with contextlib.ExitStack() as stack:
        hosts = []
        for way in ways:
            trap = stack.enter_context(TRAPS[way]()) if way in TRAPS else 1
            hosts.append(f"127.0.0.1:{trap[0] if isinstance(trap, tuple) else trap}" if way in TRAPS else "a..b:1")
        short = settings.replace(hosts=hosts, connection_attempts=2, retry_delay=0.1, socket_timeout=1.0)
        lost = ask_all(short.replace(stack_timeout=1.0), in_process)
        found = ask_all(settings.replace(hosts=(*hosts, f"{host}:{port}"), connect_deadline=6.0), in_process)
    for answers, names in ((lost, FAILED * 4 + ["ConnectionGivenUp"]), (found, FAILED * 2 + OPENED)):
        assert told(answers, "told") == alike(in_process, told=answers["blocking"]["told"])
        assert answers["blocking"]["events"] == names


def test_a_first_host_without_an_address_does_not_hide_the_second(settings):
    host, port = settings.addresses[0]
    hosts = ("gone.invalid:1", f"{host}:{port}")
    answers = ask_all(settings.replace(hosts=hosts), names={"gone.invalid": None})
    assert told(answers, "events", "error") == alike(events=FAILED + OPENED, error=None)


def test_an_address_that_refuses_is_followed_by_the_next_one_of_the_same_name(settings):
    _, port = settings.addresses[0]
    behind = settings.replace(hosts=(f"two.invalid:{port}",))
    answers = ask_all(behind, names={"two.invalid": ["::1", "127.0.0.1"]})
    assert told(answers, "events", "error") == alike(events=OPENED, error=None)


@has_ipv6
def test_localhost_with_ipv6_first_is_opened_by_either_address(settings):
    _, port = settings.addresses[0]
    names = {"localhost": ["::1", "127.0.0.1"]}
    with only_on_ipv6(settings) as port_6:
        for each in (port, port_6):
            answers = ask_all(settings.replace(hosts=(f"localhost:{each}",)), names=names)
            assert told(answers, "events", "error") == alike(events=OPENED, error=None)


@has_ipv6
def test_localhost_means_both_loopback_addresses_where_the_resolver_does_not_know_it(settings):
    _, port = settings.addresses[0]
    with only_on_ipv6(settings) as port_6:
        for each in (port, port_6):
            answers = ask_all(settings.replace(hosts=(f"localhost:{each}",)), names={"localhost": None})
            assert told(answers, "events", "error") == alike(events=OPENED, error=None)


def test_an_unreadable_tls_file_is_an_error_of_the_settings_before_any_attempt(settings, tmp_path):
    answers = ask_all(settings.replace(tls=TlsSettings(ca_file=tmp_path / "missing.pem")))
    expected = alike(events=[], error="ConfigurationError", times_told=1)
    assert told(answers, "events", "error", "times_told") == expected


def test_a_refused_login_ends_everything_at_once(settings):
    _, port = settings.addresses[0]
    hosts = (f"127.0.0.1:{port}", f"localhost:{port}")
    wrong = settings.replace(hosts=hosts, password="wrong", connection_attempts=3, retry_delay=0.1)
    answers = ask_all(wrong)
    expected = alike(
        events=[*FAILED, "ConnectionGivenUp"],
        kind="REFUSED",
        cause="ProbableAuthenticationError",
        given_up="AuthenticationFailed",
        times_told=1,
    )
    assert told(answers, "events", "kind", "cause", "given_up", "times_told") == expected
    assert all_in_family(answers)
    assert {answers[each]["error"] for each in ON_A_LOOP} == {"ProbableAuthenticationError"}


def test_a_missing_virtual_host_is_refused_access(settings):
    answers = ask_all(settings.replace(virtual_host="not-there", connection_attempts=3))
    expected = alike(events=[*FAILED, "ConnectionGivenUp"], kind="REFUSED", given_up="AccessRefused")
    assert told(answers, "events", "kind", "given_up") == expected
    assert all_in_family(answers)


def test_an_unknown_name_is_tried_as_often_as_the_settings_say(settings):
    unknown = settings.replace(hosts=("gone.invalid:1",), connection_attempts=2, retry_delay=0.1)
    answers = ask_all(unknown, names={"gone.invalid": None})
    expected = alike(
        events=[*FAILED, *FAILED, "ConnectionGivenUp"],
        kind="TRANSIENT",
        cause="gaierror",
        given_up="ConnectError",
        times_told=1,
    )
    assert told(answers, "events", "kind", "cause", "given_up", "times_told") == expected
    assert all_in_family(answers)
    assert {answers[each]["error"] for each in ON_A_LOOP} == {"AMQPConnectionError"}


def test_a_name_that_cannot_be_encoded_is_an_unknown_name(settings):
    answers = ask_all(settings.replace(hosts=("a..b:1",)))
    assert told(answers, "kind", "cause") == alike(kind="TRANSIENT", cause="gaierror")
    assert all_in_family(answers)


def test_a_resolver_that_hangs_is_given_up_and_holds_nothing_up(settings):
    hung = settings.replace(hosts=("slow.invalid:1",), connect_deadline=1.0, socket_timeout=1.0)
    answers = ask_all(hung, names={"slow.invalid": 8.0})
    assert told(answers, "kind", "cause") == alike(kind="TRANSIENT", cause="TimeoutError")
    assert all_in_family(answers)
    late = {driver: answer["returned_after"] for driver, answer in answers.items() if answer["returned_after"] > 4.0}
    assert late == {}


def test_a_resolver_that_hangs_does_not_hide_the_second_host(settings):
    host, port = settings.addresses[0]
    hosts = ("slow.invalid:1", f"{host}:{port}")
    answers = ask_all(settings.replace(hosts=hosts, connect_deadline=3.0), names={"slow.invalid": 8.0})
    assert told(answers, "events", "error") == alike(events=FAILED + OPENED, error=None)


def test_a_refused_port_is_told_as_pika_does(settings):
    with refused_port() as port:
        answers = ask_all(settings.replace(hosts=(f"127.0.0.1:{port}",), connection_attempts=2, retry_delay=0.1))
    expected = alike(
        events=[*FAILED, *FAILED, "ConnectionGivenUp"], kind="TRANSIENT", cause="ConnectionRefusedError", times_told=1
    )
    assert told(answers, "events", "kind", "cause", "times_told") == expected
    assert all_in_family(answers)
    assert {answers[each]["error"] for each in ON_A_LOOP} == {"AMQPConnectionError"}


@pytest.mark.skipif(sys.platform != "linux", reason="which values a kernel refuses is its own affair")
def test_a_socket_option_that_the_kernel_refuses_is_told_before_anything_is_tried(settings):
    refused = settings.replace(tcp_options={"TCP_KEEPIDLE": 60000})
    answers = ask_all(refused)
    assert told(answers, "events", "cause", "times_told") == alike(events=[], cause="OSError", times_told=1)
    assert all(answer["told_after"] < 1.0 + SLACK + 2.0 for answer in answers.values())


@pytest.mark.parametrize("limit", ["stack_timeout", "connect_deadline"])
def test_silence_in_the_handshake_is_told_in_time_and_in_pikas_words(settings, limit):
    with silent_peer() as port:
        answers = ask_all(settings.replace(hosts=(f"127.0.0.1:{port}",), **{limit: 1.0}))
    expected = alike(
        events=[*FAILED, "ConnectionGivenUp"],
        kind="TRANSIENT",
        cause="AMQPConnectorStackTimeout",
        given_up="ConnectError",
        times_told=1,
    )
    assert told(answers, "events", "kind", "cause", "given_up", "times_told") == expected
    assert all_in_family(answers)
    assert {answers[each]["error"] for each in ON_A_LOOP} == {"AMQPConnectionError"}
    assert all(0.9 < answer["told_after"] < 1.0 + SLACK + 2.0 for answer in answers.values())


def test_silence_in_the_tls_handshake_is_told_in_pikas_words(settings):
    with silent_peer() as port:
        silent = settings.replace(hosts=(f"127.0.0.1:{port}",), stack_timeout=1.0, tls=TlsSettings())
        answers = ask_all(silent)
    expected = alike(events=[*FAILED, "ConnectionGivenUp"], kind="TRANSIENT", cause="AMQPConnectorStackTimeout")
    assert told(answers, "events", "kind", "cause") == expected
    assert all_in_family(answers)


def test_a_lost_syn_is_told_in_pikas_words(settings):
    with black_hole() as port:
        answers = ask_all(settings.replace(hosts=(f"127.0.0.1:{port}",), socket_timeout=1.0))
    expected = alike(events=[*FAILED, "ConnectionGivenUp"], kind="TRANSIENT", cause="TimeoutError")
    assert told(answers, "events", "kind", "cause") == expected
    assert all_in_family(answers)


def test_tls_to_a_plain_port_is_refused_and_told_in_pikas_words(settings):
    answers = ask_all(settings.replace(tls=TlsSettings(), connection_attempts=3, retry_delay=0.1))
    expected = alike(events=[*FAILED, "ConnectionGivenUp"], kind="REFUSED", given_up="NotTls")
    assert told(answers, "events", "kind", "given_up") == expected
    assert all_in_family(answers)


def test_plain_amqp_to_a_tls_port_is_refused_and_told_in_pikas_words(settings, encrypted):
    answers = ask_all(settings.replace(hosts=encrypted.hosts, port=encrypted.port, connection_attempts=3))
    expected = alike(events=[*FAILED, "ConnectionGivenUp"], kind="REFUSED", given_up="TlsRequired")
    assert told(answers, "events", "kind", "given_up") == expected
    assert all_in_family(answers)


@pytest.mark.parametrize("where", ["in the handshake", "in a pause", "in a name lookup"])
def test_given_up_by_its_caller_it_makes_no_further_attempt_and_says_so(settings, where):
    with silent_peer() as deaf, refused_port() as nobody:
        one = {
            "in the handshake": settings.replace(hosts=(f"127.0.0.1:{deaf}",), stack_timeout=1.5),
            "in a pause": settings.replace(hosts=(f"127.0.0.1:{nobody}",), retry_delay=30.0),
            "in a name lookup": settings.replace(hosts=("slow.invalid:1",), socket_timeout=1.5),
        }[where]
        answers = ask_all(
            one.replace(connection_attempts=5, connect_deadline=60.0),
            CANCELLED,
            cancel_after=0.7,
            names={"slow.invalid": 3.0},
        )
    assert told(answers, "times_told") == alike(CANCELLED, times_told=1)
    assert all_in_family(answers)
    assert {answers[each]["error"] for each in ON_A_LOOP} == {"ConnectionOpenAborted"}
    assert {answers[each]["error"] for each in ("awaited", "twisted")} == {"CancelledError"}
    assert answers["connection"]["error"] == "NotConnected"
    for driver, answer in answers.items():
        events = answer["events"]
        if driver == "connection":  # its end is ConnectionClosed: it can be opened again
            events = [*events, "ConnectionGivenUp"]
            if where != "in a pause":
                events.insert(1, "AttemptFailed")
        assert (driver, events) == (driver, [*FAILED, "ConnectionGivenUp"])


def test_a_tls_file_that_is_bad_for_a_moment_costs_a_round_and_not_the_connection(encrypted, certificates, tmp_path):
    good = Path(encrypted.tls.ca_file).read_bytes()
    with refused_port() as nobody:
        for driver in ALL:
            ours = tmp_path / f"{driver}.pem"
            ours.write_bytes(good)
            rounds = []

            def hear(name, ours=ours, rounds=rounds):
                if name == "AttemptFailed":
                    rounds.append(name)
                    ours.write_bytes(b"half a fi")
                    timer = threading.Timer(0.7, ours.write_bytes, [good])
                    timer.start()

            three = encrypted.replace(
                hosts=(f"127.0.0.1:{nobody}",),
                tls=encrypted.tls.replace(ca_file=ours),
                connection_attempts=3,
                retry_delay=0.5,
            )
            answer = ask(driver, three, on_event=hear)
            assert (driver, answer["events"]) == (driver, [*FAILED, *FAILED, "ConnectionGivenUp"])


@pytest.mark.parametrize("driver", [*WAITING, *ON_A_LOOP])
def test_a_moment_with_too_many_threads_is_tried_again(settings, driver, monkeypatch):
    host, port = settings.addresses[0]
    named = settings.replace(hosts=(f"one.invalid:{port}",), connection_attempts=2, retry_delay=0.1)
    refused = []

    class CrowdedThread(threading.Thread):
        def start(self):
            if self.name == "labkit-dns" and not refused:
                refused.append(self)
                raise RuntimeError("can't start new thread")
            super().start()

    monkeypatch.setattr("threading.Thread", CrowdedThread)
    answer = ask(driver, named, names={"one.invalid": [host]})
    assert (answer["events"], answer["error"]) == (FAILED + OPENED, None)
    assert refused
