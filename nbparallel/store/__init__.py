"""The data plane in Redis or Valkey: the only package that imports redis.

``protocol.py`` says what a store can do; ``real.py`` does it with the scripts of ``scripts.lua``; ``fake.py`` does
it in memory, for tests. ``keys.py`` lists every key.
"""
