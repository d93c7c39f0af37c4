"""Additions through messages, one in each: through a server's own queues, and through plain Celery.

A worker is ``python messaging.py redis://...`` (or ``amqp://...``), or, with the broker in ``MESSAGING_BROKER``,
``celery -A messaging worker``.
"""

import json
import os
import sys
import time

import amqp
import psutil
import redis
from celery import Celery
from kombu.utils.url import url_to_parts


def add(x, y):
    return x + y


# -- the servers' own queues -------------------------------------------------------------------------------------------


class RawRedis:
    """Two lists: additions go into one, and sums come out of the other."""

    def __init__(self, url):
        self.server = redis.Redis.from_url(url, protocol=2)

    def work(self):
        while True:
            if message := self.server.blpop(["in"], timeout=4):
                self.server.rpush("out", json.dumps(add(*json.loads(message[1]))))

    def map(self, pairs):
        for pair in pairs:
            self.server.rpush("in", json.dumps(pair))
        return [json.loads(self.server.blpop(["out"], timeout=4)[1]) for _ in pairs]

    def close(self):
        self.server.close()


class RawRabbitMQ:
    """Two queues."""

    def __init__(self, url):
        _, host, port, user, password, *_ = url_to_parts(url)
        self.connection = amqp.Connection(f"{host}:{port}", userid=user, password=password)
        self.connection.connect()
        self.channel = self.connection.channel()
        for queue in ("in", "out"):
            self.channel.queue_declare(queue, auto_delete=False)

    def send(self, queue, value):
        self.channel.basic_publish(amqp.Message(json.dumps(value)), routing_key=queue)

    def work(self):
        def take(message):
            self.send("out", add(*json.loads(message.body)))
            message.channel.basic_ack(message.delivery_tag)

        self.channel.basic_qos(0, 10, False)
        self.channel.basic_consume("in", callback=take)
        while True:
            self.connection.drain_events()

    def map(self, pairs):
        results = []
        tag = self.channel.basic_consume("out", no_ack=True, callback=lambda m: results.append(json.loads(m.body)))
        for pair in pairs:
            self.send("in", pair)
        while len(results) < len(pairs):
            self.connection.drain_events(timeout=10)
        self.channel.basic_cancel(tag)
        return results

    def close(self):
        self.connection.close()


def raw(url):
    return (RawRedis if url.startswith("redis") else RawRabbitMQ)(url)


# -- Celery ------------------------------------------------------------------------------------------------------------


class WithCelery:
    """A task for each, as the guide has it; results through Redis, or through RabbitMQ's replies."""

    def __init__(self, url):
        self.app = Celery("messaging", broker=url, backend=url if url.startswith("redis") else "rpc://")
        self.app.conf.update(broker_connection_retry_on_startup=True, worker_prefetch_multiplier=10)
        self.add = self.app.task(name="add")(add)

    def map(self, pairs):
        pending = [self.add.delay(*pair) for pair in pairs]
        return [one.get(timeout=60) for one in pending]

    def close(self):
        self.app.close()


if "MESSAGING_BROKER" in os.environ:
    app = WithCelery(os.environ["MESSAGING_BROKER"]).app


# -- measuring ---------------------------------------------------------------------------------------------------------


def clock(run, pairs):
    """Seconds for some additions, checked."""
    began = time.perf_counter()
    results = run(pairs)
    seconds = time.perf_counter() - began
    assert sorted(results) == sorted(x + y for x, y in pairs)
    return seconds


def connections(process, port):
    """How many connections a worker, with the processes that it started, has to a server of this machine."""
    worker = psutil.Process(process.pid)
    everything = [line for one in (worker, *worker.children(True)) for line in one.net_connections("tcp")]
    return sum(bool(line.raddr) and line.raddr.port == port and line.status == "ESTABLISHED" for line in everything)


if __name__ == "__main__":
    raw(sys.argv[1]).work()
