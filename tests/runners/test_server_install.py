"""The cache of installed servers, and the programs that fill it, which are scripts here."""

import hashlib
import io
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.runners.servers import flink, prism, pubsub
from headrace.runners.servers.install import (
    cache_folder,
    digest,
    file_digest,
    go_environment,
    install,
    locked,
    run,
    template,
    tool,
)
from headrace.runners.servers.maven import jars, shaded
from headrace.schemas.errors import ConfigError

Program = Callable[[str, str], Path]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HEADRACE_PRISM", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Makes shell scripts that are the only programs in PATH beside the system's own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("JAVA_HOME", raising=False)

    def make(name: str, script: str) -> Path:
        path = folder / name
        path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
        path.chmod(0o755)
        return path

    return make


def test_an_installation_is_made_once(cache: Path) -> None:
    calls: list[Path] = []

    def build(folder: Path) -> None:
        calls.append(folder)
        (folder / "file").write_text("1")

    assert install("a-1", build) == cache / "a-1"
    assert install("a-1", build) == cache / "a-1"
    assert len(calls) == 1
    assert calls[0].parent == cache
    assert sorted(path.name for path in cache.iterdir()) == ["a-1", "a-1.lock"]


@pytest.mark.parametrize("error", [ConfigError("no network"), KeyboardInterrupt()])
def test_a_failed_installation_leaves_nothing_that_is_used(error: BaseException, cache: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("1")
        raise error

    with pytest.raises(type(error)):
        install("a-1", fail)
    assert [path.name for path in cache.iterdir()] == ["a-1.lock"]
    assert [*install("a-1", lambda folder: (folder / "whole").touch()).iterdir()] == [cache / "a-1" / "whole"]


def test_what_a_killed_installation_left_is_removed(cache: Path) -> None:
    (cache / ".a-1.killed").mkdir(parents=True)
    (cache / ".a-1.killed" / "half").write_text("1")
    assert list(install("a-1", lambda folder: None).iterdir()) == []
    assert not (cache / ".a-1.killed").exists()


def test_of_two_installations_at_once_one_waits_and_finds_it_done(cache: Path) -> None:
    inside, builds = threading.Event(), []

    def build(folder: Path) -> None:
        builds.append(folder)
        inside.set()
        second.join(0.05)  # it can't end: it waits for the lock
        assert second.is_alive()

    second = threading.Thread(target=lambda: inside.wait(20) and install("a-1", build))
    second.start()
    install("a-1", build)
    second.join(20)
    assert not second.is_alive()
    assert len(builds) == 1


def test_a_lock_is_freed_by_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), locked(tmp_path / "x" / "lock"):
        raise RuntimeError
    with locked(tmp_path / "x" / "lock"):
        pass


def test_a_cache_that_cannot_be_written_names_the_variable(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(
        ConfigError, match=f"can't write to the cache {cache}: Permission denied; .*HEADRACE_CACHE"
    ):
        install("a-1", lambda folder: None)


def test_the_default_cache_is_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADRACE_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "headrace"


def test_digests(tmp_path: Path) -> None:
    assert digest("a", "b") != digest("ab")
    assert len(digest("a")) == 12
    (tmp_path / "f").write_bytes(b"x")
    assert file_digest(tmp_path / "f") == hashlib.sha256(b"x").hexdigest()
    assert int(go_environment()["GOMAXPROCS"]) >= 1


@pytest.mark.parametrize(
    ("name", "package"),
    [("java", "openjdk-17-jre-headless"), ("mvn", "maven"), ("go", "golang-go")],
)
def test_a_missing_program_names_its_package(name: str, package: str, program: Program) -> None:
    with pytest.raises(
        ConfigError, match=f"{name} is not in PATH; this needs it. On Debian or Ubuntu: apt install {package}"
    ):
        tool(name, "this")
    path = program(name, "true")
    assert tool(name, "this") == str(path)


def test_java_home_comes_first(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=f"JAVA_HOME={tmp_path} has no bin/java; correct it, or unset it"):
        tool("java", "this")
    monkeypatch.setenv("PATH", "")
    (tmp_path / "bin" / "java").symlink_to(tmp_path / "bin" / "other")
    program("other", "true")
    assert tool("java", "this") == str(tmp_path / "bin" / "java")


def test_a_program_that_fails_is_told_with_its_last_lines(program: Program, tmp_path: Path) -> None:
    path = program("go", "seq 1 40; echo 'no space left' >&2; exit 7")
    with pytest.raises(ConfigError) as error:
        run([path], what="building", cwd=tmp_path)
    message = str(error.value)
    assert message.startswith(
        "building failed: go ended with code 7. Check the network and that the disk has room"
    )
    assert message.endswith("39\n40\nno space left")
    assert "\n25\n" not in message
    assert (
        run([program("mvn", "echo $MORE")], what="it", cwd=tmp_path, environment={"MORE": "more"}) == "more\n"
    )


def test_the_poms_hold_their_versions() -> None:
    assert "<version>4.3.1</version>" in template("kafka-pom.xml", {"version": "4.3.1"})
    pom = template("flink-job-server-pom.xml", {"version": "2.70.0"})
    assert "<beam.version>2.70.0</beam.version>" in pom
    assert "@version@" not in pom


def test_jars_come_by_maven_once(program: Program, cache: Path) -> None:
    script = """for word; do case $word in -DoutputDirectory=*) out=${word#*=};; esac; done
grep -q '<version>4.3.1</version>' pom.xml && mkdir "$out" && touch "$out/kafka.jar"; echo "$@" >> ../calls"""
    program("mvn", script)
    found = jars("kafka", "4.3.1", "kafka-pom.xml", "")
    assert found == jars("kafka", "4.3.1", "kafka-pom.xml", "")
    assert found.parent.name.startswith("kafka-4.3.1-")
    assert [path.name for path in found.iterdir()] == ["kafka.jar"]
    [call] = (cache / "calls").read_text().splitlines()
    assert call.startswith("-B -q -ntp")
    assert "copy-dependencies" in call


def test_maven_that_brings_nothing_or_fails_or_is_missing(program: Program, cache: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"mvn is not in PATH; installing kafka needs it.*apt install maven"
    ):
        jars("kafka", "1", "kafka-pom.xml", "")
    program("mvn", "true")
    with pytest.raises(ConfigError, match=r"Maven brought no jar for kafka 1; look at its settings\.xml"):
        jars("kafka", "1", "kafka-pom.xml", "")
    program("mvn", "echo 'Could not resolve'; exit 1")
    with pytest.raises(
        ConfigError, match=r"installing kafka failed: mvn ended with code 1(.|\n)*Could not resolve"
    ):
        jars("kafka", "1", "kafka-pom.xml", "")
    assert [path.name for path in cache.iterdir() if path.is_dir()] == []


def test_the_job_server_is_one_jar(program: Program) -> None:
    program("mvn", "mkdir -p target/classes; echo whole > target/flink-job-server.jar")
    found = shaded("flink-job-server", "2.70.0", "flink-job-server-pom.xml", "")
    assert found.read_text() == "whole\n"
    assert sorted(path.name for path in found.parent.iterdir()) == ["flink-job-server.jar", "pom.xml"]


def archive(path: Path, *names: str) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            info = tarfile.TarInfo(f"apache-flink-libraries-1/{name}")
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))


@pytest.fixture
def downloaded(tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Flink's archive, and a pip that brings it."""
    path = tmp_path / "flink.tar.gz"
    names = ("deps/lib/flink-dist-1.jar", "deps/lib/flink-csv-1.jar", "deps/plugins/metrics-prometheus/p.jar")
    archive(path, *names, "../deps/lib/log4j-1.jar", "deps/lib/log4j-core.jar", "setup.py")
    pip = program(
        "python", f'echo "$@" > {tmp_path}/pip; while [ "$1" != -d ]; do shift; done; cp {path} "$2"'
    )
    monkeypatch.setattr(sys, "executable", str(pip))
    return path


def test_flink_is_unpacked_from_the_archive_that_pip_brings(
    downloaded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flink, "FLINK_SHA256", file_digest(downloaded))
    folder = flink.FlinkCluster._flink()
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*") if path.is_file()) == [
        "lib/flink-dist-1.jar",
        "lib/log4j-core.jar",
        "plugins/metrics-prometheus/p.jar",
    ]
    assert (folder / "lib" / "flink-dist-1.jar").read_text() == "deps/lib/flink-dist-1.jar"
    assert "--no-deps --no-binary apache-flink-libraries" in (tmp_path / "pip").read_text()


def test_another_archive_of_flink_is_refused(downloaded: Path, cache: Path) -> None:
    with pytest.raises(ConfigError, match=r"flink\.tar\.gz has SHA-256 [0-9a-f]{64}, not 4a58e3a1"):
        flink.FlinkCluster._flink()
    assert [path.name for path in cache.iterdir() if path.is_dir()] == []


HELP = "echo '  -job_port int' >&2; exit 2"


def test_prism_is_the_named_one_or_the_one_in_path_or_built(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="there is no prism; build it with `headrace cluster up prism`"):
        prism.prism_binary(build=False)
    with pytest.raises(
        ConfigError, match=r"go is not in PATH; building Prism needs it.*apt install golang-go"
    ):
        prism.prism_binary()
    program("go", f'echo "$@" > {tmp_path}/go; touch "$GOBIN/prism"')
    built = prism.prism_binary()
    assert built.parent.name.startswith("prism-v2.77.0-")
    assert (tmp_path / "go").read_text() == "install github.com/apache/beam/sdks/v2/go/cmd/prism@v2.77.0\n"
    assert prism.prism_binary(build=False) == built
    program("prism", "echo a mock server for OpenAPI")
    assert prism.prism_binary() == built
    path = program("prism", HELP)
    assert prism.prism_binary() == path
    other = program("another", HELP)
    monkeypatch.setenv("HEADRACE_PRISM", str(other))
    assert prism.prism_binary() == other
    monkeypatch.setenv("HEADRACE_PRISM", str(tmp_path / "none"))
    with pytest.raises(
        ConfigError, match=r"HEADRACE_PRISM=.*/none is not Beam's prism; correct it, or unset it"
    ):
        prism.prism_binary()


def test_the_emulator_is_found_beside_gcloud_else_the_fake_is_built(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pubsub, "_SYSTEM", tmp_path / "none")
    assert pubsub.emulator_jar() is None
    assert pubsub.PubSubServer(tmp_path, kind="fake")._given == {"kind": "fake"}
    with pytest.raises(
        ConfigError, match=r"emulator is not on this machine; apt install google-cloud-cli-pubsub-emulator"
    ):
        pubsub.PubSubServer(tmp_path, kind="emulator").up()
    with pytest.raises(ConfigError, match=r"go is not in PATH; building the Pub/Sub fake .* needs it"):
        pubsub.PubSubServer(tmp_path).up()
    program("go", "test -s go.sum && grep -q pstest main.go && touch pubsub-fake")
    assert pubsub._fake().name == "pubsub-fake"
    jar = tmp_path / "platform" / "pubsub-emulator" / "lib" / "cloud-pubsub-emulator-0.8.20-all.jar"
    jar.parent.mkdir(parents=True)
    jar.touch()
    program("gcloud", "true")
    assert pubsub.emulator_jar() == jar
    with pytest.raises(ConfigError, match="java is not in PATH; Google's Pub/Sub emulator needs it"):
        pubsub.PubSubServer(tmp_path).up()
