"""Packaging: the namespace ``headrace`` is mapped onto the top-level folders."""

from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
README = HERE / "README.md"
ROOMS = ["pipelines", "runners", "connectors", "simulator", "transforms", "schemas"]


def packages() -> dict[str, str]:
    """Returns every package's import name with the folder that it lives in."""
    found = {}
    for room in ROOMS:
        for init in sorted((HERE / room).rglob("__init__.py")):
            folder = init.parent.relative_to(HERE)
            found["headrace." + ".".join(folder.parts)] = folder.as_posix()
    return found


setup(
    name="headrace",
    version="0.1.0",
    description="Columnar, exact and conserving Apache Beam transforms for event data",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=list(packages()),
    package_dir=packages(),
    package_data={
        "headrace.schemas": ["families/*/*.json", "py.typed"],
        "headrace.runners.servers": ["*.xml", "pubsub_fake/*"],
        "headrace.pipelines.report": ["page.html"],
        **{f"headrace.{room}": ["py.typed"] for room in ROOMS if room != "schemas"},
    },
    install_requires=[
        "apache-beam[gcp]>=2.77,<2.78",
        "pyarrow>=24,<26",
        "numpy>=2",
        "orjson>=3.10",
        "msgspec>=0.20",
        "fastavro>=1.9",
        "jsonschema>=4.23",
        "rfc3339-validator>=0.1.4",
        "jsonschema-rs>=0.46",
        "xxhash>=3.5",
        "duckdb>=1.4",
        "deltalake>=1.3",
        "presidio-analyzer>=2.2.360",
        "cryptography>=44",
        "google-cloud-pubsub>=2.25",
        "confluent-kafka>=2.10",
        "prometheus-client>=0.22",
        "iptocc>=3.3",
        "maxminddb>=2.6",
        "ua-parser>=1.0",
        "ua-parser-rs>=0.1.3",
        "zstandard>=0.23",
        "PyYAML>=6",
        "typer>=0.15",
        "regex>=2024.5",
        "rich>=13.9",
        "matplotlib>=3.9",
        "Jinja2>=3.1",
    ],
    extras_require={
        "otel": ["opentelemetry-sdk>=1.45", "opentelemetry-exporter-otlp-proto-http>=1.45"],
        "dev": [
            "pytest>=8.3",
            "pytest-cov>=6",
            "pytest-xdist>=3.6",
            "hypothesis>=6.120",
            "Faker>=37",
            "ruff>=0.12",
            "mypy>=1.15",
            "types-PyYAML",
            "psutil>=6",
            "opentelemetry-sdk>=1.45",
            "opentelemetry-exporter-otlp-proto-http>=1.45",
            "build>=1.2",
        ],
    },
    entry_points={"console_scripts": ["headrace = headrace.pipelines.cli:main"]},
)
