"""A FastAPI application as a service writes it, for servers that tests start: LABKIT_URL says where the broker is."""

import os

from fastapi import FastAPI, Request

from labkit.integrations.fastapi import RabbitMQ

QUEUE = "orders"


def create_app(url=None):
    rabbitmq = RabbitMQ(url or os.environ["LABKIT_URL"], deadline=3.0)
    app = FastAPI(lifespan=rabbitmq.lifespan)
    rabbitmq.init_app(app)
    app.state.rabbitmq = rabbitmq

    @app.post("/orders", status_code=202)
    async def order(request: Request, queue: str = QUEUE):
        confirmation = await rabbitmq.publish(routing_key=queue, body=await request.body())
        return {"message_id": confirmation.message_id}

    return app
