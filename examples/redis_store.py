"""States of streams in Redis: a process ends, and another one goes on with every stream.

Needs a Redis server and its client: apt-get install redis-server; pip install redis

    python redis_store.py [redis://localhost:6379]

Expected output:

    1000 streams stored with one round trip, 1072 bytes each
    a new process: 1000 streams restored, the next outputs are equal: True
    a day later the states are gone: True
"""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

import fastlstm as fl


class RedisStore:
    """A `fastlstm.streams.Store` in Redis.

    Parameters
    ----------
    client : redis.Redis
    seconds : int
        After so long without a new state a key is forgotten.
    prefix : str
        Begins the names of all keys.
    """

    def __init__(self, client: Any, seconds: int = 86_400, prefix: str = "stream:") -> None:
        self.client, self.seconds, self.prefix = client, seconds, prefix

    def get_many(self, keys: Iterable[str]) -> list[bytes | None]:
        names = [self.prefix + key for key in keys]
        return list(self.client.mget(names)) if names else []

    def put_many(self, states: Mapping[str, bytes]) -> None:
        pipeline = self.client.pipeline()  # MULTI: all states or none
        for key, state in states.items():
            pipeline.set(self.prefix + key, state, ex=self.seconds)
        pipeline.execute()

    def delete_many(self, keys: Iterable[str]) -> None:
        names = [self.prefix + key for key in keys]
        if names:
            self.client.delete(*names)


def main(url: str) -> None:
    import redis

    layer = fl.LSTM(40, 128, seed=0)
    store = RedisStore(redis.Redis.from_url(url), prefix="fastlstm-example:")
    keys = [f"caller-{i}" for i in range(1000)]
    x = np.random.default_rng(0).standard_normal((3, 1000, 40)).astype(np.float32)

    streams = fl.StreamBatch(layer, capacity=1000)
    handles = [streams.open(key) for key in keys]
    for x_t in x[:2]:
        streams.step(handles, x_t)
    states = streams.export(handles)
    store.put_many(dict(zip(keys, states, strict=True)))
    print(f"{len(states)} streams stored with one round trip, {len(states[0])} bytes each")

    found = [state for state in store.get_many(keys) if state is not None]
    again = fl.StreamBatch(layer, capacity=1000)
    restored = again.restore(found, keys=keys)
    equal = np.array_equal(again.step(restored, x[2]), streams.step(handles, x[2]))
    print(f"a new process: {len(restored)} streams restored, the next outputs are equal: {equal}")

    store.delete_many(keys)  # what Redis does by itself after 86,400 seconds
    print(f"a day later the states are gone: {store.get_many(keys) == [None] * 1000}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "redis://localhost:6379")
