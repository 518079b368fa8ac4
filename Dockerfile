# docker build -t tidegate .    tests/deploy/test_image.py replays these steps where there is no engine.
FROM python:3.13-slim-bookworm AS build
WORKDIR /src
COPY requirements/ requirements/
# Wheels alone: nothing is compiled, and what is installed is what was pinned.
RUN pip wheel --no-cache-dir --require-hashes --only-binary=:all: --wheel-dir /wheels -r requirements/runtime.txt \
    && pip install --no-cache-dir --require-hashes -r requirements/build.txt
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY storage/ storage/
COPY auth/ auth/
COPY handlers/ handlers/
COPY server/ server/
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

FROM python:3.13-slim-bookworm
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-index --no-deps /wheels/*.whl \
    && install --directory --owner=10001 --group=10001 /data
COPY deploy/healthcheck.py /opt/healthcheck.py
ENV PYTHONUNBUFFERED=1 \
    TIDEGATE_HOST=0.0.0.0 \
    TIDEGATE_PORT=8080 \
    TIDEGATE_DATA=/data
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 CMD ["python", "/opt/healthcheck.py"]
ENTRYPOINT ["tidegate"]
CMD ["serve"]
