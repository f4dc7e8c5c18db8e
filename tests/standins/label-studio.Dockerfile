# Label Studio from the package index, started as its published image starts it: for a machine that reaches no registry.
# The context is lplgrad_backend/demo, where the release is pinned.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE}
COPY label-studio-requirements.txt /tmp/requirements.txt
RUN python -m venv /opt/label-studio && /opt/label-studio/bin/pip install --no-cache-dir -r /tmp/requirements.txt
RUN useradd --uid 1001 --gid 0 --create-home label-studio && install -d -o label-studio /label-studio/data
ENV PATH=/opt/label-studio/bin:$PATH PYTHONUNBUFFERED=1 LABEL_STUDIO_BASE_DATA_DIR=/label-studio/data \
    LATEST_VERSION_CHECK=false COLLECT_ANALYTICS=false SENTRY_DSN= FRONTEND_SENTRY_DSN=
USER label-studio
VOLUME /label-studio/data
EXPOSE 8080
CMD ["label-studio"]
