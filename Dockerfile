# syntax=docker/dockerfile:1
# Two images of one installation: `train` without ray and cv2, and `prepare` with them. Nothing is downloaded when they
# run. k8s/README.md has the commands.
#   docker build --target train   --build-arg TORCH_INDEX=URL --tag psys-train .     URL: of PyTorch's wheels for the CPU
#   docker build --target train                               --tag psys-train .     for GPUs: torch with its CUDA

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# The dependencies of psys, from pyproject.toml: those of training, and those that only the preparation needs.
FROM ${PYTHON_IMAGE} AS build-train
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/psys
WORKDIR /src
COPY pyproject.toml ./
RUN python3 -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > all.txt \
    && grep --invert-match --extended-regexp '^(ray|opencv)' all.txt > train.txt \
    && grep --extended-regexp '^(ray|opencv)' all.txt | sed 's/^ray/ray[default]/' > prepare.txt \
    && grep '^torch' all.txt > torch.txt
RUN /opt/psys/bin/pip install ${TORCH_INDEX:+--index-url=$TORCH_INDEX} --requirement torch.txt
RUN /opt/psys/bin/pip install --requirement train.txt
COPY README.md LICENSE ./
COPY configs configs
COPY psys psys
RUN /opt/psys/bin/pip install --no-deps .

# Ray with its dashboard, which KubeRay asks for the state of a job.
FROM build-train AS build-prepare
RUN /opt/psys/bin/pip install --requirement prepare.txt

FROM ${PYTHON_IMAGE} AS runtime
RUN groupadd --gid 10001 psys && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp psys
ENV PATH=/opt/psys/bin:$PATH PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0 ORT_DISABLE_TELEMETRY=1
WORKDIR /data
# A run ends by itself, and the cluster knows whether workers can join it.
HEALTHCHECK NONE
ENTRYPOINT ["psys"]

FROM runtime AS prepare
# The probes that KubeRay adds call wget, and its commands may run in a login shell, which sets another PATH.
RUN apt-get update && apt-get install --yes --no-install-recommends wget && rm -rf /var/lib/apt/lists/* \
    && echo 'PATH=/opt/psys/bin:$PATH' > /etc/profile.d/psys.sh
COPY --from=build-prepare /opt/psys /opt/psys
USER 10001:10001

FROM runtime AS train
COPY --from=build-train /opt/psys /opt/psys
USER 10001:10001
