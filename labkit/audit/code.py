"""The rules for source code. Each looks at what is written: what only running would tell is left alone."""

import ast
from collections.abc import Iterator
from urllib.parse import urlsplit

from labkit.audit.reading import UNKNOWN, Call, Source
from labkit.audit.rules import DOCS, rule

Found = Iterator[tuple[ast.AST, str]]

CONNECTIONS = ("BlockingConnection", "SyncConnection")
CLASSES_OF_PIKA = tuple(f"{each}Connection" for each in ("Blocking", "Select", "Asyncio", "Tornado", "Gevent", "Libev"))
PARAMETERS = ("ConnectionParameters", "BrokerSettings")
HERE = ("localhost", "127.0.0.1", "::1", "")
HEARTBEAT_LEAST, HEARTBEAT_MOST = 5, 600  # seconds
CHANNEL_VERBS = {"channel", "close", "start_consuming", "process_data_events"}  # and basic_..., queue_..., exchange_...


@rule(
    "connection-left-open", "code",
    why="an exception on the way leaves the connection open at the broker, and a loop leaves thousands",
    fix="`with SyncConnection(...) as connection:`, `with contextlib.closing(...)`, or close() in a finally",
    reference=f"{DOCS}connections#high-connection-churn",
)  # fmt: skip
def connection_left_open(source: Source) -> Found:
    """A connection that a function makes, and nothing is sure to close."""
    for call in source.named(*CONNECTIONS):
        holder = source.parents.get(call.node)
        if isinstance(holder, ast.Expr):
            yield call.node, f"{call.name}(...) is kept nowhere"
        elif isinstance(holder, ast.Assign) and isinstance(holder.targets[0], ast.Name):
            name = holder.targets[0].id
            if not _is_closed_or_handed_on(source, call.node, name):
                yield call.node, f"{name} = {call.name}(...) is closed by no `with` and no `finally`"


def _is_closed_or_handed_on(source: Source, call: ast.AST, name: str) -> bool:
    scope = source.function_of(call)
    for node in ast.walk(scope):
        if not (isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load)):
            continue
        for below, up in zip([node, *source.above(node)], source.above(node), strict=False):
            if isinstance(up, ast.Attribute) and up.attr == "close":
                if any(isinstance(each, ast.Try) and _is_in(node, each.finalbody) for each in source.above(node)):
                    return True
                break
            if isinstance(up, ast.withitem) or (isinstance(up, ast.Call) and below in up.args):
                return True  # `with it`, or handed to someone: closing(it), stack.callback(it.close), a class
            if isinstance(up, (ast.Return, ast.Yield)) and up.value is below:
                return True
            if isinstance(up, ast.Assign) and up.value is below:
                return True
            if isinstance(up, ast.stmt):
                break
    return False


@rule(
    "heartbeat-out-of-range", "code",
    why="without heartbeats a dead link is found when TCP gives up; below 5 s a busy moment looks like one",
    fix=f"a heartbeat from {HEARTBEAT_LEAST} to {HEARTBEAT_MOST} s; 60 is the broker's own proposal",
    reference=f"{DOCS}heartbeats#false-positives",
)  # fmt: skip
def heartbeat_out_of_range(source: Source) -> Found:
    """A heartbeat that is off, hasty or very slow."""
    for call in source.named(*PARAMETERS, "replace"):
        value = source.value(call.given.get("heartbeat"), UNKNOWN)
        if isinstance(value, int) and not HEARTBEAT_LEAST <= value <= HEARTBEAT_MOST:
            yield call.node, f"heartbeat={value}"


@rule(
    "no-blocked-timeout", "code",
    why="while the broker has an alarm, a publisher without this limit waits forever",
    fix="blocked_connection_timeout=300, as BrokerSettings has it",
    reference=f"{DOCS}connection-blocked",
)  # fmt: skip
def no_blocked_timeout(source: Source) -> Found:
    """Parameters that wait forever for a blocked broker."""
    for call in source.named(*PARAMETERS):
        node = call.given.get("blocked_connection_timeout")
        if (node is None and call.name == "ConnectionParameters" and call.is_whole) or (
            node is not None and source.value(node, UNKNOWN) is None
        ):
            yield call.node, "no blocked_connection_timeout"


@rule(
    "timeout-off", "code",
    why="a peer that answers nothing then holds the program up for as long as it likes",
    fix="leave Pika's limits (10 and 15 s), or set others",
    reference="https://pika.readthedocs.io/en/stable/modules/parameters.html",
)  # fmt: skip
def timeout_off(source: Source) -> Found:
    """A limit of Pika's that is taken away."""
    for call in source.named(*PARAMETERS):
        for name in ("socket_timeout", "stack_timeout"):
            if name in call.given and source.value(call.given[name], UNKNOWN) is None:
                yield call.node, f"{name}=None"


@rule(
    "connection-for-each-message", "code",
    why="a connection takes seven exchanges with the broker and some of its memory; a message takes one",
    fix="open it once, outside of the loop or the request, or take one from a pool",
    reference=f"{DOCS}connections#high-connection-churn",
)  # fmt: skip
def connection_for_each_message(source: Source) -> Found:
    """A connection made in a loop that publishes, or in a function that answers a request."""
    for call in source.named(*CONNECTIONS):
        for up in source.above(call.node):
            if isinstance(up, (ast.FunctionDef, ast.AsyncFunctionDef)):
                if any(_is_route(each) for each in up.decorator_list):
                    yield call.node, f"{call.name}(...) for each request of {up.name}()"
                break
            if isinstance(up, (ast.For, ast.While)) and _publishes(up) and not _ends(up):
                yield call.node, f"{call.name}(...) in a loop that publishes"
                break


def _publishes(node: ast.AST) -> bool:
    return any(isinstance(each, ast.Attribute) and each.attr in ("basic_publish", "publish") for each in ast.walk(node))


def _ends(loop: ast.AST) -> bool:
    """Whether it is a loop that tries until something has worked."""
    return any(isinstance(each, (ast.Break, ast.Return)) for each in ast.walk(loop))


def _is_route(decorator: ast.expr) -> bool:
    named = decorator.func if isinstance(decorator, ast.Call) else decorator
    return isinstance(named, ast.Attribute) and named.attr in ("route", "get", "post", "put", "delete", "patch")


@rule(
    "shared-between-threads", "code",
    why="Pika's connections and channels are not thread-safe: two threads' frames mix, and the broker closes the link",
    fix="a connection for each thread, connection.add_callback_threadsafe(), or labkit's Connection or pool",
    reference="https://pika.readthedocs.io/en/stable/faq.html",
)  # fmt: skip
def shared_between_threads(source: Source) -> Found:
    """A thread's function that uses a connection or channel of another thread."""
    pikas = _names_of_connections(source)
    functions = {each.name: each for each in ast.walk(source.tree) if isinstance(each, ast.FunctionDef)}
    for call in source.named("Thread", "submit", "run_in_executor", "start_new_thread", "to_thread"):
        target = call.given.get("target") or call.given.get("1" if call.name == "run_in_executor" else "0")
        body: ast.AST | None = target
        if isinstance(target, ast.Name):
            body = functions.get(target.id)
        if body is None:
            continue
        own = {each.id for each in ast.walk(body) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
        if isinstance(body, ast.FunctionDef):
            own |= {each.arg for each in body.args.args}
        for node in ast.walk(body):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and _is_used(node.attr):
                name = node.value.id
                if name in pikas and name not in own and not _is_handed_over(source, node):
                    yield node, f"{name}.{node.attr} in a thread's function"


def _names_of_connections(source: Source) -> set[str]:
    names: set[str] = set()
    for call in source.named("BlockingConnection", "channel"):
        holder = source.parents.get(call.node)
        if call.name == "channel" and call.owner not in names:
            continue
        if isinstance(holder, ast.Assign):
            names |= {each.id for each in holder.targets if isinstance(each, ast.Name)}
    return names


def _is_used(attribute: str) -> bool:
    return attribute.startswith(("basic_", "queue_", "exchange_")) or attribute in CHANNEL_VERBS


def _is_handed_over(source: Source, node: ast.AST) -> bool:
    calls = (each for each in source.above(node) if isinstance(each, ast.Call))
    return any(isinstance(each.func, ast.Attribute) and each.func.attr == "add_callback_threadsafe" for each in calls)


@rule(
    "no-tls", "code",
    why="the password and every message cross the network in the clear",
    fix="an amqps:// URL, ssl_options, or TlsSettings",
    reference=f"{DOCS}ssl",
)  # fmt: skip
def no_tls(source: Source) -> Found:
    """A broker on another machine that is spoken to in the clear."""
    for call in source.named(*PARAMETERS):
        host = source.value(call.given.get("host"), "localhost")
        ciphered = "ssl_options" in call.given or "tls" in call.given or not call.is_whole
        if isinstance(host, str) and host not in HERE and not ciphered:
            yield call.node, f"{call.name}(host={host!r}) without TLS"
    for call, url in _urls(source):
        parts = urlsplit(url)
        if parts.scheme == "amqp" and (parts.hostname or "") not in HERE:
            yield call.node, f"amqp:// to {parts.hostname}"


def _urls(source: Source) -> Iterator[tuple[Call, str]]:
    for call in source.named("URLParameters", "from_url"):
        url = source.value(call.given.get("url"))
        if isinstance(url, str) and url.startswith(("amqp://", "amqps://")):
            yield call, url


@rule(
    "tls-not-verified", "code",
    why="anybody who sits on the way can be the broker, and is told the password",
    fix="give the authority's file: ssl.create_default_context(cafile=...), or TlsSettings(ca_file=...)",
    reference=f"{DOCS}ssl#peer-verification",
)  # fmt: skip
def tls_not_verified(source: Source) -> Found:
    """TLS that accepts any certificate."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            name, text = node.targets[0].attr, ast.unparse(node.value)
            if (name, text) == ("check_hostname", "False") or (name == "verify_mode" and text.endswith("CERT_NONE")):
                yield node, ast.unparse(node)
    for call in source.named("_create_unverified_context"):
        yield call.node, "ssl._create_unverified_context()"
    for call in source.named("TlsSettings"):
        if source.value(call.given.get("insecure")) is True:
            yield call.node, "TlsSettings(insecure=True)"


@rule(
    "guest-from-elsewhere", "code",
    why="everybody knows guest's password; RabbitMQ lets guest in from its own machine only",
    fix="a user of its own for each program",
    reference=f"{DOCS}access-control#loopback-users",
)  # fmt: skip
def guest_from_elsewhere(source: Source) -> Found:
    """guest's name for a broker on another machine."""
    hosts = [source.value(each.given.get("host"), "localhost") for each in source.named(*PARAMETERS)]
    away = [each for each in hosts if isinstance(each, str) and each not in HERE]
    for call in source.named("PlainCredentials"):
        if away and source.value(call.given.get("username")) == "guest":
            yield call.node, f"guest at {away[0]}"
    for call in source.named("BrokerSettings"):
        host = source.value(call.given.get("host"), "localhost")
        user = source.value(call.given.get("username"), "guest")
        if isinstance(host, str) and host not in HERE and user == "guest":
            yield call.node, f"guest at {host}"
    for call, url in _urls(source):
        parts = urlsplit(url)
        if (parts.username or "guest") == "guest" and (parts.hostname or "") not in HERE:
            yield call.node, f"guest at {parts.hostname}"


@rule(
    "password-in-source", "code",
    why="who can read the repository, or a backup of it, can log in; and a new password needs a release",
    fix="read it from the environment, as BrokerSettings.from_env() does, or from a secret store",
    reference=f"{DOCS}passwords",
)  # fmt: skip
def password_in_source(source: Source) -> Found:
    """A password that stands in the text; guest's is no secret."""
    for call in source.named("PlainCredentials", "BrokerSettings"):
        value = source.value(call.given.get("password"))
        if isinstance(value, str) and value != "guest":
            yield call.node, f"a password in {call.name}(...)"
    for call, url in _urls(source):
        if urlsplit(url).password not in {None, "guest"}:
            yield call.node, "a password in a URL"


@rule(
    "auto-ack", "code",
    why="the broker forgets a message when it sends it: what a crash or a lost link meets is gone",
    fix="acknowledge when the work is done; auto_ack is for amq.rabbitmq.reply-to and what may be lost",
    reference=f"{DOCS}confirms#acknowledgement-modes",
)  # fmt: skip
def auto_ack(source: Source) -> Found:
    """Messages that the broker forgets as it sends them."""
    for call in source.named("basic_consume", "basic_get", "consume", "get", "Consumer"):
        direct = source.value(call.given.get("queue") or call.given.get("0")) == "amq.rabbitmq.reply-to"
        if source.value(call.given.get("auto_ack")) is True and not direct:
            yield call.node, f"{call.name}(auto_ack=True)"


@rule(
    "no-prefetch", "code",
    why="the broker sends the whole queue ahead: one consumer holds all of it, in memory",
    fix="channel.basic_qos(prefetch_count=10) before basic_consume",
    reference=f"{DOCS}consumer-prefetch",
)  # fmt: skip
def no_prefetch(source: Source) -> Found:
    """A consumer without a limit on what is sent ahead."""
    if not _connects(source):
        return
    limits = [source.value(each.given.get("prefetch_count"), 0) for each in source.named("basic_qos")]
    if any(limits):
        return
    for call in source.named("basic_consume"):
        if source.value(call.given.get("auto_ack")) is not True:
            yield call.node, "basic_consume without basic_qos(prefetch_count=...)"


def _connects(source: Source) -> bool:
    """Whether the file makes its connection: else its channel may have been prepared elsewhere."""
    return any(source.named(*CLASSES_OF_PIKA))


@rule(
    "publish-not-confirmed", "code",
    why="what the broker could not take, or what a lost link met, is lost without a word",
    fix="channel.confirm_delivery(), or a Publisher",
    reference=f"{DOCS}confirms#publisher-confirms",
)  # fmt: skip
def publish_not_confirmed(source: Source) -> Found:
    """Publishing without the broker's word for it."""
    if _connects(source) and not any(source.named("confirm_delivery")):
        for call in source.named("basic_publish"):
            yield call.node, "basic_publish without confirm_delivery()"


@rule(
    "publish-not-mandatory", "code",
    why="a message that no queue wants is dropped, and confirmed",
    fix="mandatory=True, and handle UnroutableError or the return; a Publisher does",
    reference=f"{DOCS}publishers#unroutable",
)  # fmt: skip
def publish_not_mandatory(source: Source) -> Found:
    """Publishing that does not ask whether there is a queue."""
    for call in source.named("basic_publish"):
        if call.is_whole and source.value(call.given.get("mandatory"), False) is False:
            yield call.node, "basic_publish without mandatory=True"


@rule(
    "publish-not-persistent", "code",
    why="a restart of the broker empties even a durable queue of it",
    fix="properties=pika.BasicProperties(delivery_mode=2); labkit's Message is persistent by itself",
    reference=f"{DOCS}queues#durability",
)  # fmt: skip
def publish_not_persistent(source: Source) -> Found:
    """A message that a restart of the broker loses."""
    for call in source.named("basic_publish"):
        if not call.is_whole:
            continue
        properties = call.given.get("properties")
        if properties is None:
            yield call.node, "basic_publish without delivery_mode=2"
        elif isinstance(properties, ast.Call) and ast.unparse(properties.func).endswith("BasicProperties"):
            names = {each.arg for each in properties.keywords}
            modes = [each.value for each in properties.keywords if each.arg == "delivery_mode"]
            if (not modes and None not in names) or (modes and source.value(modes[0]) == 1):
                yield call.node, "basic_publish without delivery_mode=2"


@rule(
    "sleep-in-callback", "code",
    why="while the callback sleeps or waits, Pika serves no heartbeat: the broker ends the link after three",
    fix="do long work in a thread and acknowledge by add_callback_threadsafe(), or consume by labkit's Connection",
    reference=f"{DOCS}heartbeats#heartbeats-timeout",
)  # fmt: skip
def sleep_in_callback(source: Source) -> Found:
    """A consumer's callback that sleeps."""
    functions = {each.name: each for each in ast.walk(source.tree) if isinstance(each, ast.FunctionDef)}
    for call in source.named("basic_consume"):
        callback = call.given.get("on_message_callback")
        function = functions.get(callback.id) if isinstance(callback, ast.Name) else None
        for node in ast.walk(function) if function else ():
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.sleep", "sleep"):
                yield node, f"{ast.unparse(node)} in {function.name if function else ''}()"


@rule(
    "error-swallowed", "code",
    why="the message is lost, and nobody is told",
    fix="let it out, try again with a limit, or at least log it",
    reference=f"{DOCS}reliability",
)  # fmt: skip
def error_swallowed(source: Source) -> Found:
    """A publish whose failure is passed over in silence."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Try) and any(_publishes(each) for each in node.body):
            for handler in node.handlers:
                if all(isinstance(each, (ast.Pass, ast.Continue)) for each in handler.body):
                    yield (
                        handler,
                        f"except {ast.unparse(handler.type) if handler.type else ''}: nothing".replace(" :", ":"),
                    )


def _is_in(node: ast.AST, statements: list[ast.stmt]) -> bool:
    return any(node is each for statement in statements for each in ast.walk(statement))
