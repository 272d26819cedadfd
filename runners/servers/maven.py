"""Jars by Maven: what a POM of this package names, with all that it depends on."""

import shutil
from pathlib import Path

from headrace.runners.servers.install import digest, install, run, template, tool
from headrace.schemas.errors import ConfigError

_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"


def jars(name: str, version: str, pom: str, note: str) -> Path:
    """Returns the folder with the jars that a POM's dependencies come to; installs them if they aren't there.

    Args:
        name: of the installation.
        version: put where the POM says ``@version@``.
        pom: the POM's file in this package, or the absolute path of another.
        note: size and time, for who waits.

    Raises:
        ConfigError: there is no Maven, or it failed.
    """
    text = template(pom, {"version": version})

    def build(folder: Path) -> None:
        _maven(folder, text, name, _COPY, f"-DoutputDirectory={folder / 'jars'}", "-DincludeScope=runtime")
        if not any((folder / "jars").glob("*.jar")):
            raise ConfigError(f"Maven brought no jar for {name} {version}; look at its settings.xml")

    return install(f"{name}-{version}-{digest(text)}", build, note) / "jars"


def shaded(name: str, version: str, pom: str, note: str) -> Path:
    """Returns the one jar that a POM packages; builds it if it isn't there.

    Args:
        name: of the installation and of the jar.
        version: put where the POM says ``@version@``.
        pom: the POM's file in this package.
        note: size and time, for who waits.

    Raises:
        ConfigError: there is no Maven, or it failed.
    """
    text = template(pom, {"version": version})

    def build(folder: Path) -> None:
        _maven(folder, text, name, "package", "-DskipTests")
        (folder / "target" / f"{name}.jar").rename(folder / f"{name}.jar")
        shutil.rmtree(folder / "target")

    return install(f"{name}-{version}-{digest(text)}", build, note) / f"{name}.jar"


def _maven(folder: Path, pom: str, name: str, *arguments: str) -> None:
    maven = tool("mvn", f"installing {name}")
    (folder / "pom.xml").write_text(pom, encoding="utf-8")
    run([maven, "-B", "-q", "-ntp", *arguments], what=f"installing {name}", cwd=folder)
