# Runs rewardloop serve on a CPU, without torch: gRPC on port 50051, metrics on port 9464.
#   docker build -f deploy/docker/server.Dockerfile -t rewardloop-server .
# It listens on every address, so that it starts only with TLS (REWARDLOOP_TLS_CERT, REWARDLOOP_TLS_KEY) or, if something
# else keeps callers out, with REWARDLOOP_INSECURE_LISTEN=true.
ARG PYTHON_TAG=3.11.14-slim-bookworm

FROM python:${PYTHON_TAG} AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY protos protos
COPY client client
COPY server server
COPY trainer trainer
COPY deploy/rewardloop_demo deploy/rewardloop_demo
COPY deploy/rewardloop_local deploy/rewardloop_local
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON_TAG} AS packages
ARG EXTRAS=server
COPY requirements/server.txt /requirements/
COPY --from=wheel /wheels /wheels
RUN python -m venv /opt/rewardloop && \
    /opt/rewardloop/bin/pip install --no-cache-dir --no-deps --require-hashes -r /requirements/server.txt && \
    /opt/rewardloop/bin/pip install --no-cache-dir "$(echo /wheels/*.whl)[${EXTRAS}]"

FROM python:${PYTHON_TAG}
COPY --from=packages /opt/rewardloop /opt/rewardloop
RUN groupadd --gid 10001 rewardloop && \
    useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp rewardloop && \
    install -d -o 10001 -g 10001 /store
ENV PATH=/opt/rewardloop/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    REWARDLOOP_LOG_FORMAT=json \
    REWARDLOOP_STORE=/store
USER 10001:10001
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=3 CMD ["rewardloop", "health"]
ENTRYPOINT ["rewardloop"]
CMD ["serve", "--listen", "0.0.0.0:50051", "--metrics-host", "0.0.0.0"]
