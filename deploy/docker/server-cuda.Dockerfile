# Runs rewardloop serve on an NVIDIA GPU, without torch: ONNX Runtime has its CUDA provider, and the lock brings the
# libraries of CUDA 13 and cuDNN 9 that it loads. The base image says to the container engine what driver it needs.
#   docker build -f deploy/docker/server-cuda.Dockerfile -t rewardloop-server-cuda .
ARG CUDA_TAG=13.0.1-base-ubuntu24.04
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

FROM nvidia/cuda:${CUDA_TAG} AS base
# hadolint ignore=DL3008
RUN apt-get update && \
    apt-get install -y --no-install-recommends python3 python3-venv && \
    rm -rf /var/lib/apt/lists/*

FROM base AS packages
ARG EXTRAS=gpu
COPY requirements/server-cuda.txt /requirements/
COPY --from=wheel /wheels /wheels
RUN python3 -m venv /opt/rewardloop && \
    /opt/rewardloop/bin/pip install --no-cache-dir --no-deps --require-hashes -r /requirements/server-cuda.txt && \
    /opt/rewardloop/bin/pip install --no-cache-dir "$(echo /wheels/*.whl)[${EXTRAS}]"

FROM base
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
HEALTHCHECK --interval=15s --timeout=10s --start-period=120s --retries=3 CMD ["rewardloop", "health"]
ENTRYPOINT ["rewardloop"]
CMD ["serve", "--listen", "0.0.0.0:50051", "--metrics-host", "0.0.0.0", "--device", "cuda"]
