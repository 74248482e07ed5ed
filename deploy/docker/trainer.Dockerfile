# Runs rewardloop train (metrics on port 9465), or rewardloop policy-worker (gRPC on port 50052, metrics on port 9466).
#   docker build -f deploy/docker/trainer.Dockerfile -t rewardloop-trainer .
# For a GPU, build it with --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 -t rewardloop-trainer-cuda:
# those wheels of torch bring CUDA with them, and the host brings the driver.
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
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=trainer
COPY requirements/trainer.txt requirements/torch.txt /requirements/
COPY --from=wheel /wheels /wheels
RUN python -m venv /opt/rewardloop && \
    /opt/rewardloop/bin/pip install --no-cache-dir --no-deps --require-hashes -r /requirements/trainer.txt && \
    /opt/rewardloop/bin/pip install --no-cache-dir --index-url "${TORCH_INDEX}" -r /requirements/torch.txt && \
    /opt/rewardloop/bin/pip install --no-cache-dir "$(echo /wheels/*.whl)[${EXTRAS}]"

FROM python:${PYTHON_TAG}
COPY --from=packages /opt/rewardloop /opt/rewardloop
RUN groupadd --gid 10001 rewardloop && \
    useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp rewardloop && \
    install -d -o 10001 -g 10001 /store /state
ENV PATH=/opt/rewardloop/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/tmp/huggingface \
    MPLCONFIGDIR=/tmp/matplotlib \
    REWARDLOOP_LOG_FORMAT=json \
    REWARDLOOP_STORE=/store
USER 10001:10001
EXPOSE 9465 9466 50052
STOPSIGNAL SIGTERM
# This checks the trainer. Deployments of the policy worker override it.
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=3 \
    CMD ["rewardloop", "health", "--metrics", "http://127.0.0.1:9465/metrics"]
ENTRYPOINT ["rewardloop"]
CMD ["train", "--metrics-host", "0.0.0.0", "--work-dir", "/state/trainer", "--archive", "/state/ledger"]
