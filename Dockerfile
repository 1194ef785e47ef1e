# The server in a container. CPU:
#   docker build -t koir .
#   docker run -p 127.0.0.1:8000:8000 -v "$PWD/outputs:/koir/outputs:ro" koir --reranker outputs/RUN
# With an index, which names its encoder by the path that it was built with (a relative one is found here too):
#   docker run -p 127.0.0.1:8000:8000 -v "$PWD/outputs:/koir/outputs:ro" -v "$PWD/indexes:/koir/indexes:ro" koir \
#     --index_uri indexes/law --reranker outputs/RUN
# NVIDIA GPU (a CUDA base, and torch with CUDA from that index):
#   docker build -t koir-gpu --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 \
#     --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
#   docker run --gpus all -p 127.0.0.1:8000:8000 koir-gpu
# Nothing is fetched inside, so hub names fail; with docker run -e HF_HUB_OFFLINE=0 they are downloaded at each start.
# For another port change docker run's -p (127.0.0.1:9000:8000), not --port: the health check asks 8000.
ARG BASE=debian:bookworm-slim
FROM ${BASE}
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /koir
COPY requirements.txt pyproject.toml README.md LICENSE ./
RUN python3 -m venv .venv \
    && .venv/bin/pip install --no-cache-dir --index-url ${TORCH_INDEX} "$(grep '^torch==' requirements.txt)" \
    && .venv/bin/pip install --no-cache-dir -r requirements.txt
COPY koir koir
COPY scripts scripts
RUN useradd --create-home koir && mkdir -p outputs && chown koir outputs
USER koir
ENV KOIR_CACHE=/home/koir/.cache/koir HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --start-period=120s \
    CMD .venv/bin/python -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready', timeout=5)"
# Inside, it listens to all; what is published is up to docker run -p. Reachable from other machines: --api_key_file.
ENTRYPOINT [".venv/bin/python", "scripts/serve.py", "--host", "0.0.0.0"]
