# balancer with the versions of constraints.txt, for the nodes of a cluster: Ray, KubeRay, Apptainer.
#
#   docker build -t balancer .                                      # CUDA: its libraries come with torch
#   docker build -t balancer-cpu --build-arg TORCH_INDEX=URL .      # URL: the wheels for CPUs that pytorch.org names
#
# The driver of the GPU comes from the node (nvidia-container-toolkit).

FROM python:3.11-slim

ARG TORCH_INDEX=
ARG EXTRAS=s3,gs,az

# KubeRay probes Ray with wget.
RUN apt-get update \
    && apt-get install -y --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home balancer

WORKDIR /opt/balancer
COPY constraints.txt ./
RUN if [ -n "$TORCH_INDEX" ]; then \
        PIP_INDEX_URL="$TORCH_INDEX" pip install --no-cache-dir -c constraints.txt torch torchvision; \
    fi
COPY pyproject.toml README.md LICENSE ./
COPY balancer balancer
COPY actors actors
RUN pip install --no-cache-dir -c constraints.txt ".[$EXTRAS]"

# Models and derived files; mount a volume here to keep them.
ENV HF_HOME=/models/huggingface BALANCER_CACHE=/models/balancer
RUN mkdir /models && chown balancer /models

USER balancer
WORKDIR /home/balancer
CMD ["balancer", "--help"]
