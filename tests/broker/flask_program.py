"""A Flask application as a service writes it, for servers that tests start: LABKIT_URL says where the broker is."""

import os

from flask import Flask, request

from labkit import Queue
from labkit.integrations.flask import RabbitMQ

QUEUE = "orders"
PAGE = """<!doctype html><html lang="en"><title>Shop</title>
<h1>Shop</h1>
<form method="post" action="/orders"><label>Order <input name="what" value="tea"></label> <button>Send</button></form>
"""
rabbitmq = RabbitMQ()


def create_app(url=None, **config):
    app = Flask("shop")
    app.config.update(LABKIT_URL=url or os.environ["LABKIT_URL"], LABKIT_DEADLINE=3.0, **config)
    rabbitmq.init_app(app)

    @app.post("/orders")
    def order():
        confirmation = rabbitmq.publish(routing_key=QUEUE, body=request.get_data())
        return {"message_id": confirmation.message_id}, 202

    app.add_url_rule("/", "page", lambda: PAGE)

    @app.get("/waiting")
    def waiting():
        return {"messages": rabbitmq.channel().declare(Queue(QUEUE), passive=True).messages}

    @app.get("/missing")
    def missing():
        rabbitmq.channel().declare(Queue("nobody made this"), passive=True)
        return {}

    return app
