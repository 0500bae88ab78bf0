# One image for the coordinator and for CPU workers; docker-compose.yml starts both.
# GPU workers: build with --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 and run with --gpus all.
FROM python:3.12-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /app
COPY constraints.txt ./
# torch alone first: it is by far the largest layer and changes least.
RUN pip install --index-url "${TORCH_INDEX}" -c constraints.txt torch==2.13.0
COPY pyproject.toml README.md LICENSE ./
COPY barnraise ./barnraise
COPY protocol ./protocol
COPY moe ./moe
COPY aggregation ./aggregation
COPY peering ./peering
COPY coordinator ./coordinator
COPY worker ./worker
COPY simulator ./simulator
RUN pip install -c constraints.txt .

# Nobody needs root to train; the volumes belong to this user.
RUN useradd --create-home --uid 10001 barnraise && mkdir -p /run-folder /links /worker /secret && chown barnraise /run-folder /links /worker /secret
USER barnraise

ENTRYPOINT ["barnraise"]
CMD ["--help"]
