# One image for all processes of the service; which one it is, the command says (web without one).
# The embedded servers, the tests and the benchmark are not in it.

FROM python:3.13.14-slim-trixie AS build
COPY requirements/runtime.txt /build/runtime.txt
# Wheels alone, by their hashes: nothing is compiled, and nothing comes that the lock does not name.
# pip is taken out again: what runs has no use for an installer.
RUN python -m venv /opt/payments \
    && /opt/payments/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps \
        --require-hashes --only-binary :all: -r /build/runtime.txt \
    && /opt/payments/bin/pip uninstall --yes pip
WORKDIR /service
COPY pyproject.toml ./
COPY shared shared
COPY web web
COPY worker worker
COPY migrations migrations
COPY payments_client payments_client
COPY local local
# Bytecode is made here, since the file system is read-only later; by hash, so that a copied file's time does not matter.
RUN /opt/payments/bin/python -m compileall -q --invalidation-mode unchecked-hash /service

FROM python:3.13.14-slim-trixie
# The number is what Kubernetes checks for runAsNonRoot; the name is for people.
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin payments
COPY --from=build /opt/payments /opt/payments
COPY --from=build /service /service
ENV PATH=/opt/payments/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PAYMENTS_HOST=0.0.0.0 \
    PAYMENTS_DATA=/tmp/payments
WORKDIR /service
USER 10001:10001
EXPOSE 8000
# Of web, the default; whoever runs another process gives that one's own, or none.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=6 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez', timeout=4)"]
CMD ["python", "-m", "web"]
