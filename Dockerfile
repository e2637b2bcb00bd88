# The gateway with the embedded engine. For vLLM, install this distribution into a vLLM image instead.
FROM python:3.11-slim AS build
WORKDIR /src
RUN python -m venv /opt/branchline
ARG TORCH="torch==2.13.*"
RUN /opt/branchline/bin/pip install --no-cache-dir "$TORCH"
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY adapters adapters
COPY router router
COPY trainer trainer
RUN /opt/branchline/bin/pip install --no-cache-dir ".[serve,embedded]"

FROM python:3.11-slim
RUN useradd --system --create-home --uid 10001 branchline && install -d -o branchline -m 0700 /var/lib/branchline
COPY --from=build /opt/branchline /opt/branchline
ENV PATH=/opt/branchline/bin:$PATH BRANCHLINE_HOME=/var/lib/branchline PYTHONUNBUFFERED=1
USER branchline
VOLUME /var/lib/branchline
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/ready', timeout=2)"]
ENTRYPOINT ["branchline"]
# BRANCHLINE_API_KEY must be set: a bind beyond loopback refuses to start without it.
CMD ["serve", "--backend", "embedded", "--base", "/models/base", "--host", "0.0.0.0"]
