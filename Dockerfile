# A worker in a container; built in a clone:  docker build -t nbparallel-worker .
# Its Python must be the clients' (see "Limits" in the README), so must the packages that functions import.
FROM python:3.11-slim
COPY . /src
RUN pip install --no-cache-dir /src && rm -r /src
USER nobody
ENTRYPOINT ["nbparallel", "worker"]
