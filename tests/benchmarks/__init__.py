"""nbparallel and its peers on the same workloads, on the same machine, in the same run.

    python -m tests.benchmarks --quick                            a first look: against multiprocessing.Pool
    python -m tests.benchmarks --peers all --env DIR --report     everything, into report-<date>.md beside this file
    python -m tests.benchmarks --peers "joblib;ray" --env DIR --parts workloads --workloads "items of 1 ms"

DIR gets a virtual environment with joblib, mpire, Dask, Ray and ipyparallel beside nbparallel's own dependencies; it
is kept for the next time. Without it, peers that cannot be imported are left out. Every peer runs in a process of
its own (driver.py), which the coordinator (measuring.py, driven.py) gives one workload after the other, in turn with
the other peers, and ends when it does not answer in time. A full run takes about twenty-five minutes on two cores;
leave the machine alone meanwhile.

    peer.py, local_peers.py, spanning_peers.py, peers.py   the peers, with their defaults and at their best
    workloads.py                                           functions, inputs, how results are checked
    driver.py, driven.py, measuring.py                     who runs what, when, with which limit
    growth.py, memory.py, processes.py                     nbparallel alone: growth, bounds of memory
    results.py, report.py, growth_words.py                 the figures, and the report that is made of them
    environment.py, plain_celery.py, plain_redis.py        what peers need
"""
