"""The client's side of a job.

``session.py`` holds the connection and the threads; ``feeding.py`` and ``running.py`` are a job's engine: it submits
chunks and takes outcomes in; ``job.py`` is the handle that the user holds; ``serial.py`` runs everything in-process.
"""
