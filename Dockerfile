# Two images: `service` (the default) and `training`.
#
#   docker build -t thacil-ctr .
#   docker build -t thacil-ctr-training --target training .
#   docker build -t thacil-ctr:gpu --build-arg ONNXRUNTIME='onnxruntime-gpu[cuda,cudnn]' .

ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS base
# 10001 stands in no distribution's list of users; nobody else's files carry it.
RUN groupadd --gid 10001 ctr \
 && useradd --uid 10001 --gid ctr --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin ctr \
 && install -d -o ctr -g ctr /models /demo
# ONNX Runtime sends facts about models and devices to its maker unless told not to.
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin \
    ORT_DISABLE_TELEMETRY=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /app


FROM base AS service-packages
# The CPU build of ONNX Runtime is a tenth of the size of the GPU build. The extras of the latter
# bring the CUDA 13 libraries from PyPI; the machine needs the driver only.
ARG ONNXRUNTIME=onnxruntime
# Further extras of pyproject.toml: otel for traces, bulk for Arrow.
ARG EXTRAS=
COPY pyproject.toml deploy/image_requirements.py ./
# Left out: pip, tests, bytecode (18 MB, and a start is only 0.2 s faster with it), ONNX Runtime's
# library for C programs and its tools for making models. The last line proves that it runs without.
RUN python -m venv --without-pip /opt/venv \
 && python image_requirements.py service ${EXTRAS} --onnxruntime "${ONNXRUNTIME}" > requirements.txt \
 && pip --python /opt/venv/bin/python install --no-cache-dir --no-compile -r requirements.txt \
 && find /opt/venv -type d \( -name tests -o -name __pycache__ \) -prune -exec rm -rf {} + \
 && cd /opt/venv/lib/python3.*/site-packages/onnxruntime \
 && rm -rf capi/libonnxruntime.so* datasets quantization tools transformers \
 && /opt/venv/bin/python -c 'import onnxruntime; print(onnxruntime.get_available_providers())'


# The compiled parts; their compiler stays here.
FROM base AS compiled
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/*
COPY service/_ranking.cpp ./service/
COPY model_store/_head.cpp model_store/head_pass.hpp model_store/lent_array.hpp ./model_store/
RUN for part in service/_ranking model_store/_head; do \
        g++ -std=c++17 -O2 -Wno-psabi -fPIC -shared "$part.cpp" \
            -I "$(python -c 'import sysconfig; print(sysconfig.get_path("include"))')" \
            -o "$part$(python -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')" \
        || exit 1; \
    done \
 && PYTHONPATH=service:model_store python -c 'import _ranking, _head'


FROM base AS training-packages
# Where torch comes from, beside PyPI: the CPU build here, nothing for PyPI's CUDA build.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
COPY pyproject.toml constraints.txt deploy/image_requirements.py ./
RUN python -m venv --without-pip /opt/venv \
 && python image_requirements.py training demo --onnxruntime onnxruntime > requirements.txt \
 && pip --python /opt/venv/bin/python install --no-cache-dir --no-compile \
        ${TORCH_INDEX_URL:+--extra-index-url "${TORCH_INDEX_URL}"} -c constraints.txt -r requirements.txt \
 && find /opt/venv -type d -name __pycache__ -prune -exec rm -rf {} +


FROM base AS training
COPY --from=training-packages /opt/venv /opt/venv
COPY model_store ./model_store
COPY training ./training
# What a version is proved on before it is published.
COPY --from=compiled /app/model_store/_head.*.so ./model_store/
COPY deploy/demo.py deploy/first_model.py deploy/load.py ./deploy/
# Matplotlib and torch want to keep caches.
ENV HOME=/tmp PYTHONPATH=/app
USER 10001:10001
ENTRYPOINT ["python", "-m", "training"]
CMD ["--help"]


FROM base AS service
COPY --from=service-packages /opt/venv /opt/venv
COPY deploy/healthcheck.py ./
COPY model_store ./model_store
COPY service ./service
COPY --from=compiled /app/service/_ranking.*.so ./service/
COPY --from=compiled /app/model_store/_head.*.so ./model_store/
# Only the files of the metrics of several workers are written, to memory: the root file system
# may be read-only. State lives in Redis: CTR_REDIS_URL must be given, there is no embedded one.
ENV CTR_HOST=0.0.0.0 \
    CTR_PORT=8000 \
    CTR_MODEL_STORE=/models \
    CTR_DATA_DIR=/dev/shm/ctr
# Where the CUDA libraries of the GPU build lie; nothing is there in the CPU build.
ENV LD_LIBRARY_PATH=/opt/venv/lib/python3.11/site-packages/nvidia/cu13/lib:/opt/venv/lib/python3.11/site-packages/nvidia/cudnn/lib
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 CMD ["python", "-I", "-S", "/app/healthcheck.py"]
# No shell between: SIGTERM reaches the service, which answers what it has begun, then ends.
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "service"]
