"""What runs on a worker machine.

``main.py`` starts a Celery worker and, in its parent process, the supervisor (``supervise.py``); in each pool process
``turn.py`` takes turns for tickets and ``execute.py`` runs one chunk. Parent and child share a ``slot.py``.
"""
