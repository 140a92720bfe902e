"""Tokens that run out: a refreshed one keeps its connection, and one that nobody refreshes is replaced in recovery."""

import base64
import hmac
import json
import threading
import time

import pytest

from labkit import AuthenticationFailed, Connection, ConnectionLost, NotConnected, Queue, State, Timeline, brokers
from labkit.retry import Backoff

pytestmark = [pytest.mark.broker, pytest.mark.own_broker, pytest.mark.slow, pytest.mark.timeout(180)]

KEY = b"a key of this test, and of no other: 32"
PLUGIN = "rabbitmq_auth_backend_oauth2"
LIFE = 5.0  # seconds of a token
QUICK = Backoff(initial=0.05, maximum=0.5)


def unpadded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def token(seconds):
    """Return a JSON Web Token that is good for *seconds* (RFC 7519; HMAC with SHA-256: RFC 7515, appendix A.1)."""
    scopes = [f"labkit.{verb}:*/*" for verb in ("configure", "read", "write")]
    claims = {"sub": "shop", "aud": "labkit", "scope": scopes, "exp": int(time.time() + seconds)}
    signed = b".".join(unpadded(json.dumps(each).encode()) for each in ({"alg": "HS256", "kid": "key"}, claims))
    return b".".join((signed, unpadded(hmac.digest(KEY, signed, "sha256")))).decode()


@pytest.fixture(scope="module")
def own():
    """A broker of our own that takes tokens, and knows their key: no token server is asked."""
    with brokers.own("local") as broker:
        plugins = broker.directory / "enabled_plugins"
        plugins.write_text(plugins.read_text(encoding="utf-8").replace("]", f",{PLUGIN}]"), encoding="utf-8")
        key = f'#{{<<"kty">> => <<"oct">>, <<"alg">> => <<"HS256">>, <<"k">> => <<"{unpadded(KEY).decode()}">>}}'
        broker.ctl(
            "eval",
            "{ok, File} = application:get_env(rabbit, enabled_plugins_file), {ok, _, _} = rabbit_plugins:ensure(File), "
            f'application:set_env({PLUGIN}, resource_server_id, <<"labkit">>), '
            f'application:set_env({PLUGIN}, key_config, [{{signing_keys, #{{<<"key">> => {{map, {key}}}}}}}]), '
            "application:set_env(rabbit, auth_backends, [rabbit_auth_backend_internal, rabbit_auth_backend_oauth2]).",
        )
        yield broker


@pytest.fixture
def settings(own):
    return own.settings().replace(username="anybody", heartbeat=2, connect_deadline=10.0)


@pytest.fixture
def _looks_at_open_links(own):
    if tuple(int(each) for each in own.version.split(".")[:2]) < (4, 3):
        pytest.skip(f"RabbitMQ {own.version} leaves a link open whose token is no good; 4.3 is known to end it")


def good_after(connection, seconds):
    """Whether it has its first link so long, and may still declare and publish on it."""
    time.sleep(seconds)
    with connection.channel(confirm=True) as channel:
        queue = channel.declare(Queue(exclusive=True))
        channel.publish("still here", routing_key=queue.name)
    return connection.generation == 1


def test_a_connection_outlives_its_first_token_when_it_is_given_the_next_in_time(settings):
    with Connection(settings.replace(password=token(LIFE))) as connection:
        for _ in range(4):
            connection.update_secret(token(LIFE), "it runs out")
            assert good_after(connection, LIFE / 2)


@pytest.mark.usefixtures("_looks_at_open_links")
def test_a_token_that_comes_amid_the_login_with_the_last_one_reaches_that_link(settings):
    """A heartbeat function is called when the login has been sent and the connection is not yet open."""

    def renew(pika_connection, offered):
        renewal = threading.Thread(target=connection.update_secret, args=(token(60),))
        renewal.start()
        renewal.join()
        return offered

    connection = Connection(settings.replace(password=token(LIFE), heartbeat=renew))
    with connection:
        assert good_after(connection, LIFE + 2)


@pytest.mark.usefixtures("_looks_at_open_links")
def test_a_token_that_runs_out_costs_its_link_and_recovery_asks_for_another(settings):
    asked, timeline = [], Timeline()

    def credentials():
        asked.append(token(LIFE if not asked else 60))
        return "anybody", asked[-1]

    asks = settings.replace(credentials=credentials)
    with Connection(asks, recovery=True, backoff=QUICK, listeners=[timeline]) as connection:
        lost = timeline.wait_for(ConnectionLost, timeout=LIFE + 10)
        assert (lost.reason.reply_code, "expired" in lost.reason.reply_text) == (320, True)
        connection.wait_for(State.OPEN, timeout=10)
        assert (connection.generation, len(asked)) == (2, 2)


@pytest.mark.usefixtures("_looks_at_open_links")
def test_a_secret_that_is_no_good_token_ends_the_link_and_is_refused_at_the_next(settings):
    """A user with a password may give any; here the broker looks at it."""
    with Connection(settings.replace(password=token(60))) as connection:
        with pytest.raises(NotConnected, match=r"update_secret: the link ended first: .*530"):
            connection.update_secret(token(-60))
        with pytest.raises(AuthenticationFailed):
            connection.open()
        connection.update_secret(token(60))
        assert connection.open().is_open
