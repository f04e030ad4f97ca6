# octavo, two targets:
#   docker build --target cpu  -t octavo:cpu  .
#   docker build --target cuda -t octavo:cuda .
#   docker run -p 8000:8000 -v octavo-models:/models octavo:cpu [MODEL] [--flags]
#   docker run --gpus all -p 8000:8000 -v ~/.cache/huggingface:/models octavo:cuda MODEL [--flags]
# The last finds what the host has downloaded; with --user "$(id -u)" it downloads there, too.
# The cuda image has been built, and says so where there is no GPU; on one it has not run yet.
# Where the package index at hand has only CUDA builds of torch, name one with CPU builds in
# TORCH_INDEX_URL: the cpu image shrinks by gigabytes.

ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS build
ARG TORCH_INDEX_URL=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/octavo
# Compiles the CPU kernels for every instruction set: the image itself needs no compiler.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml setup.py README.md LICENSE ./
COPY src src
COPY kernels kernels
COPY engine engine
COPY server server
COPY loadtest loadtest
RUN /opt/octavo/bin/pip install ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} .

FROM python:${PYTHON_VERSION}-slim AS runtime
COPY --from=build /opt/octavo /opt/octavo
RUN useradd --create-home --uid 10001 octavo \
    && mkdir /models \
    && chown octavo:octavo /models
# Bytecode was compiled at install: a start-up compiles nothing.
# Hub downloads live in a volume of their own, so that a new container finds them.
ENV PATH=/opt/octavo/bin:$PATH \
    HF_HOME=/models \
    OCTAVO_HOST=0.0.0.0 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /home/octavo
VOLUME /models
EXPOSE 8000
# Start-up of a large model takes minutes; /livez says that the front end answers.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:%s/livez' % os.environ.get('OCTAVO_PORT', '8000'), timeout=2)"]
ENTRYPOINT ["octavo", "serve"]

# The CUDA libraries and Triton come with torch's own wheels (no TORCH_INDEX_URL for this target);
# the driver comes from the host (--gpus all). Triton compiles its kernels at the first start, and
# for that needs a C compiler and a folder that whatever user it runs as may write.
FROM runtime AS cuda
USER root
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
USER 10001
# Without a GPU it says so, instead of computing on the CPU unasked.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    OCTAVO_DEVICE=cuda \
    TRITON_CACHE_DIR=/tmp/triton

# Last, so that a plain `docker build .` makes it.
FROM runtime AS cpu
