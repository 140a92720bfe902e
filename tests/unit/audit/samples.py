"""For each rule about source code: texts in which it finds something, and texts in which it finds nothing."""

# ruff: noqa: E501

OPEN = "import pika\nconnection = pika.BlockingConnection(parameters)\nchannel = connection.channel()\n"

FOUND = {
    "connection-left-open": [
        "def send():\n    connection = pika.BlockingConnection()\n    connection.channel()\n    connection.close()",
        "pika.BlockingConnection(parameters)",
        "def send():\n    c = SyncConnection(settings).open()\n    d = SyncConnection(settings)\n    d.publish('q', 'x')",
    ],
    "heartbeat-out-of-range": [
        "pika.ConnectionParameters(heartbeat=0)",
        "BEAT = 2\nBrokerSettings(heartbeat=BEAT)",
        "settings.replace(heartbeat=3600)",
    ],
    "no-blocked-timeout": [
        "pika.ConnectionParameters('localhost')",
        "BrokerSettings(blocked_connection_timeout=None)",
    ],
    "timeout-off": ["pika.ConnectionParameters(socket_timeout=None, stack_timeout=None)"],
    "connection-for-each-message": [
        "for body in work:\n    with closing(pika.BlockingConnection()) as c:\n        c.channel().basic_publish('', 'q', body)",
        "@app.route('/order')\ndef order():\n    c = pika.BlockingConnection()\n    c.close()",
        "@app.post('/order')\nasync def order():\n    c = pika.BlockingConnection()\n    c.close()",
    ],
    "shared-between-threads": [
        f"{OPEN}def work():\n    channel.basic_publish('', 'q', b'x')\nThread(target=work).start()",
        f"{OPEN}pool.submit(lambda: channel.basic_ack(1))",
        f"{OPEN}loop.run_in_executor(None, channel.start_consuming)",
        f"{OPEN}def beat():\n    connection.process_data_events()\nThread(None, beat)",
    ],
    "no-tls": [
        "pika.ConnectionParameters('rabbit.example.org')",
        "pika.URLParameters('amqp://me@rabbit.example.org/')",
        "BrokerSettings(host='10.0.0.7')",
    ],
    "tls-not-verified": [
        "context.check_hostname = False",
        "context.verify_mode = ssl.CERT_NONE",
        "ssl._create_unverified_context()",
        "TlsSettings(insecure=True)",
    ],
    "guest-from-elsewhere": [
        "pika.ConnectionParameters('rabbit', credentials=pika.PlainCredentials('guest', 'guest'))",
        "BrokerSettings.from_url('amqp://rabbit/')",
        "BrokerSettings(host='rabbit')",
    ],
    "password-in-source": [
        "pika.PlainCredentials('me', 'hunter2')",
        "BrokerSettings(username='me', password='hunter2')",
        "pika.URLParameters('amqps://me:hunter2@rabbit/')",
    ],
    "auto-ack": [
        "channel.basic_consume('q', take, True)",
        "channel.basic_get('q', auto_ack=True)",
        "Consumer(settings, 'q', take, auto_ack=True)",
    ],
    "no-prefetch": [f"{OPEN}channel.basic_consume('q', take)", f"{OPEN}channel.basic_qos(prefetch_count=0)\nchannel.basic_consume('q', take)"],
    "publish-not-confirmed": [f"{OPEN}channel.basic_publish('', 'q', b'x')"],
    "publish-not-mandatory": ["channel.basic_publish('', 'q', b'x', mandatory=False)", "channel.basic_publish('', 'q', b'x')"],
    "publish-not-persistent": [
        "channel.basic_publish('', 'q', b'x')",
        "channel.basic_publish('', 'q', b'x', pika.BasicProperties(delivery_mode=1))",
        "channel.basic_publish('', 'q', b'x', properties=pika.BasicProperties(message_id='1'))",
    ],
    "sleep-in-callback": [
        "def take(*_):\n    time.sleep(60)\nchannel.basic_consume('q', on_message_callback=take)",
    ],
    "error-swallowed": [
        "try:\n    channel.basic_publish('', 'q', b'x')\nexcept Exception:\n    pass",
        "while True:\n    try:\n        publisher.publish('x', routing_key='q')\n    except:\n        continue",
    ],
    "transient-queue": ["channel.queue_declare('q')", "channel.queue_declare('q', durable=False)", "Queue('q', durable=False)"],
    "global-qos": ["channel.basic_qos(0, 10, True)", "channel.basic_qos(prefetch_count=10, global_qos=True)"],
    "queue-mode": ["channel.queue_declare('q', durable=True, arguments={'x-queue-mode': 'lazy'})"],
    "master-locator": ["Queue('q', arguments={'x-queue-master-locator': 'min-masters'})"],
    "mirrored-queue": ["api.put('policies/%2F/all', {'pattern': '.*', 'definition': {'ha-mode': 'all'}})"],
    "no-delivery-limit": ["Queue('q', arguments={'x-queue-type': 'quorum'})"],
    "small-frames": ["pika.ConnectionParameters(frame_max=4096)", "BrokerSettings(frame_max=4096)"],
    "failure-not-counted": [
        "def take(ch, method, _, body):\n    try:\n        work(body)\n    except Exception:\n        ch.basic_nack(method.delivery_tag)",
    ],
    "cancel-not-heard": ["channel.basic_consume('q', take)\nchannel.start_consuming()"],
    "deprecated-adapter": [
        "pika.BlockingConnection()",
        "TornadoConnection(parameters)",
        "pika.adapters.gevent_connection.GeventConnection(parameters)",
        "class Ours(TwistedProtocolConnection):\n    pass",
    ],
    "pika-compat": ["import pika.compat", "from pika.compat import as_bytes", "from pika import compat"],
}  # fmt: skip

NOT_FOUND = {
    "connection-left-open": [
        "def send():\n    with pika.BlockingConnection() as connection:\n        connection.channel()",
        "def send():\n    c = pika.BlockingConnection()\n    try:\n        c.channel()\n    finally:\n        c.close()",
        "def connect():\n    c = pika.BlockingConnection()\n    return c",
        "def send():\n    c = pika.BlockingConnection()\n    with contextlib.closing(c):\n        c.channel()",
        "class Service:\n    def __init__(self):\n        self.c = pika.BlockingConnection()",
    ],
    "heartbeat-out-of-range": ["pika.ConnectionParameters(heartbeat=30)", "BrokerSettings(heartbeat=beat())", "BrokerSettings()"],
    "no-blocked-timeout": [
        "pika.ConnectionParameters(blocked_connection_timeout=30)", "BrokerSettings()", "pika.ConnectionParameters(**given)",
    ],
    "timeout-off": ["pika.ConnectionParameters(socket_timeout=5)"],
    "connection-for-each-message": [
        "while True:\n    try:\n        c = pika.BlockingConnection()\n        c.channel().publish('q', b'x')\n        break\n    except OSError:\n        pass",
        "def order():\n    with pika.BlockingConnection() as c:\n        c.channel()",
    ],
    "shared-between-threads": [
        f"{OPEN}def work():\n    connection.add_callback_threadsafe(lambda: channel.basic_ack(1))\nThread(target=work).start()",
        "def work():\n    c = pika.BlockingConnection()\n    c.channel()\nThread(target=work)",
        f"{OPEN}def work(channel):\n    channel.close()\nThread(target=work, args=(other,))",
        f"{OPEN}Thread(target=print)",
    ],
    "no-tls": [
        "pika.ConnectionParameters()", "pika.ConnectionParameters('rabbit', ssl_options=options)", "BrokerSettings(host='rabbit', tls=tls)",
        "pika.URLParameters('amqps://rabbit/')", "pika.URLParameters('amqp://localhost/')", "pika.URLParameters(url)",
    ],
    "tls-not-verified": ["context.verify_mode = ssl.CERT_REQUIRED", "TlsSettings(ca_file='ca.pem')"],
    "guest-from-elsewhere": ["pika.PlainCredentials('guest', 'guest')", "BrokerSettings(host='rabbit', username='orders')", "BrokerSettings()"],
    "password-in-source": ["pika.PlainCredentials('me', os.environ['PASSWORD'])", "pika.URLParameters('amqps://me@rabbit/')", "BrokerSettings()"],
    "auto-ack": [
        "channel.basic_consume('q', take)", "channel.basic_consume('amq.rabbitmq.reply-to', take, auto_ack=True)", "cache.get('q')",
    ],
    "no-prefetch": [
        f"{OPEN}channel.basic_qos(prefetch_count=10)\nchannel.basic_consume('q', take)", f"{OPEN}channel.basic_consume('q', take, auto_ack=True)",
        "def listen(channel):\n    channel.basic_consume('q', take)",
    ],
    "publish-not-confirmed": [
        f"{OPEN}channel.confirm_delivery()\nchannel.basic_publish('', 'q', b'x')", "def send(channel):\n    channel.basic_publish('', 'q', b'x')",
    ],
    "publish-not-mandatory": ["channel.basic_publish('', 'q', b'x', mandatory=True)", "channel.basic_publish(**message)"],
    "publish-not-persistent": [
        "channel.basic_publish('', 'q', b'x', pika.BasicProperties(delivery_mode=2))",
        "channel.basic_publish('', 'q', b'x', properties=pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent))",
        "channel.basic_publish('', 'q', b'x', properties=properties)",
    ],
    "sleep-in-callback": ["def take(*_):\n    work()\ntime.sleep(1)\nchannel.basic_consume('q', take)"],
    "error-swallowed": ["try:\n    channel.basic_publish('', 'q', b'x')\nexcept UnroutableError:\n    log.warning('no queue')"],
    "transient-queue": [
        "channel.queue_declare('q', durable=True)", "channel.queue_declare('', exclusive=True)", "channel.queue_declare('q', passive=True)",
        "Queue('q')", "queue.Queue()", "channel.queue_declare(**declared)",
    ],
    "global-qos": ["channel.basic_qos(prefetch_count=10)"],
    "queue-mode": ["Queue('q', arguments={'x-max-length': 10})"],
    "master-locator": ["Queue('q', arguments={'x-queue-leader-locator': 'balanced'})"],
    "mirrored-queue": ["api.put('policies/%2F/all', {'pattern': '.*', 'definition': {'max-length': 10}})"],
    "no-delivery-limit": ["Queue('q', arguments={'x-queue-type': 'quorum', 'x-delivery-limit': 5})", "Queue('q', arguments={'x-queue-type': 'classic'})"],
    "small-frames": ["pika.ConnectionParameters(frame_max=131072)"],
    "failure-not-counted": [
        "channel.basic_nack(1)", "try:\n    work()\nexcept Exception:\n    channel.basic_nack(1, requeue=False)",
        "try:\n    work()\nexcept Exception:\n    channel.basic_reject(1)",
    ],
    "cancel-not-heard": ["channel.add_on_cancel_callback(stop)\nchannel.start_consuming()", "channel.basic_consume('q', take)"],
    "deprecated-adapter": ["pika.SelectConnection(parameters)", "AsyncioConnection(parameters)"],
    "pika-compat": ["import pika", "from pika import exceptions"],
}  # fmt: skip
