"""What lies under deploy/ fits the service: names, limits and settings agree, and each tool accepts its own file.

Tools that are not Python packages of the test lock (systemd, kubectl) are used where they are installed.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from fakeredis import FakeRedis, FakeServer
from rq import Queue
from rq.registry import StartedJobRegistry

from superexam_rq.app import create_app
from superexam_rq.config import Settings, env_example, rows

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE, BRIDGE = DEPLOY / "docker-compose.yml", DEPLOY / "docker-compose.bridge.yml"
UNITS = sorted((DEPLOY / "systemd").iterdir())
GRACE = Settings().shutdown_grace
# What Compose alone reads; each is explained in deploy/README.md.
COMPOSE_ONLY = {
    "COMPOSE_FILE", "COMPOSE_PROFILES", "COMPOSE_PROJECT_NAME", "DASHBOARD_PORT", "GCLOUD_CONFIG_DIR",
    "PUBLISH_ADDRESS", "REDIS_IMAGE", "SUPEREXAM_GID", "SUPEREXAM_IMAGE", "SUPEREXAM_UID",
}  # fmt: skip


class ComposeLoader(yaml.SafeLoader):
    """Read Compose's own tags as what they hold."""


ComposeLoader.add_constructor("!reset", lambda loader, node: f"reset {node.value}")


def tool(name: str) -> str:
    """Return the path of a program, from this environment or the machine; skips the test without it."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program with nothing in its environment but what is given, and return its output."""
    clean = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/nonexistent", **environment}
    return subprocess.run([*map(str, command)], cwd=cwd, env=clean, capture_output=True, text=True, timeout=60)


def compose(path: Path) -> dict[str, Any]:
    """Return a Compose file with its anchors resolved."""
    loaded: dict[str, Any] = yaml.load(path.read_text(), Loader=ComposeLoader)
    return loaded


def manifests() -> Iterator[dict[str, Any]]:
    """Give every Kubernetes object."""
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        yield from yaml.safe_load_all(path.read_text())


def manifest(kind: str, name: str) -> dict[str, Any]:
    """Return one Kubernetes object."""
    (found,) = (each for each in manifests() if each["kind"] == kind and each["metadata"]["name"] == name)
    return found


def container(deployment: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a Deployment's pod and its one container."""
    pod: dict[str, Any] = manifest("Deployment", deployment)["spec"]["template"]["spec"]
    (only,) = pod["containers"]
    return pod, only


# Compose


@pytest.mark.parametrize("path", [COMPOSE, BRIDGE], ids=lambda path: path.name)
def test_compose_reads_only_variables_that_are_documented(path: Path) -> None:
    """Each variable is a setting, or one of Compose's own that deploy/README.md explains."""
    settings = {name for row in rows() for name in row.names}
    named = set(re.findall(r"\$\{(\w+)", path.read_text()))
    readme = (DEPLOY / "README.md").read_text()
    assert named - settings <= COMPOSE_ONLY
    assert [name for name in sorted(COMPOSE_ONLY) if f"`{name}" not in readme] == []


def test_every_role_runs_confined_on_the_hosts_network() -> None:
    """API, worker and dashboard are on the host's network, have no rights, and come back after any end."""
    services = compose(COMPOSE)["services"]
    assert set(services) == {"api", "worker", "dashboard"}
    for service in services.values():
        assert service["network_mode"] == "host"
        assert (service["read_only"], service["init"], service["restart"]) == (True, True, "always")
        assert (service["cap_drop"], service["security_opt"]) == (["ALL"], ["no-new-privileges:true"])
        assert all(volume["read_only"] for volume in service.get("volumes", []))
    assert [name for name, service in services.items() if "profiles" in service] == ["dashboard"]


def test_the_bridge_takes_every_service_off_the_hosts_network() -> None:
    """No service that the base file puts on the host's network is forgotten."""
    services = compose(BRIDGE)["services"]
    for name in compose(COMPOSE)["services"]:
        assert services[name]["network_mode"] == "reset null"
        assert services[name]["networks"] == ["superexam"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Give a project's root as after `cp .env.example .env`."""
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    (tmp_path / ".env").write_text(env_example())
    return tmp_path


def docker_compose() -> str:
    """Return the path of Compose 2; skips the test without it."""
    found = tool("docker-compose")
    if not run(found, "version", "--short").stdout.lstrip("v").startswith("2."):
        pytest.skip("docker-compose is not Compose 2")
    return found


def config(project: Path, **environment: str) -> dict[str, Any]:
    """Return the project as Compose sees it from the root."""
    ran = run(docker_compose(), "config", cwd=project, **environment)
    assert ran.stdout, ran.stderr
    resolved: dict[str, Any] = yaml.safe_load(ran.stdout)
    return resolved


def test_docker_compose_finds_the_project_from_the_root(project: Path) -> None:
    """Copying .env.example is enough for `docker-compose`: its project, two services, settings and grace."""
    resolved = config(project)
    assert resolved["name"] == "superexam"
    services = resolved["services"]
    assert set(services) == {"api", "worker"}
    for service in services.values():
        assert Path(service["build"]["context"]) == project
        assert service["environment"]["REDIS_KEY_PREFIX"] == "superexam:"
    assert {mount["target"] for mount in services["worker"]["volumes"]} == {"/gcloud", "/uploads"}


@pytest.mark.parametrize(("grace", "text"), [("", "11m0s"), ("90", "2m30s")])
def test_a_stopped_worker_has_its_grace_and_a_minute(project: Path, grace: str, text: str) -> None:
    """The engine waits longer than the worker lets its job go on, whatever SHUTDOWN_GRACE is."""
    worker = config(project, SHUTDOWN_GRACE=grace)["services"]["worker"]
    assert worker["stop_grace_period"] == text


def test_the_bridge_needs_keys(project: Path) -> None:
    """Without API_KEYS Compose refuses to start, and names the variable; with them it resolves, Redis included."""
    files = {"COMPOSE_FILE": "deploy/docker-compose.yml:deploy/docker-compose.bridge.yml", "COMPOSE_PROFILES": "redis"}
    refused = run(docker_compose(), "config", cwd=project, **files)
    assert refused.stdout == ""
    assert "API_KEYS" in refused.stderr
    services = config(project, API_KEYS="a-key", **files)["services"]
    assert set(services) == {"api", "worker", "redis"}
    assert not any("network_mode" in service for service in services.values())


# The image


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (DEPLOY / "Dockerfile").read_text())
    return [(word, rest) for word, rest in re.findall(r"^([A-Z]+) (.*)$", text, re.MULTILINE)]


def copied() -> list[str]:
    """Return what the image copies from the project."""
    copies = [rest.split() for word, rest in instructions() if word == "COPY"]
    return [source for words in copies if not words[0].startswith("--from") for source in words[:-1]]


def test_hadolint_has_nothing_to_say() -> None:
    """The Dockerfile follows the common rules."""
    ran = run(tool("hadolint"), DEPLOY / "Dockerfile")
    assert (ran.returncode, ran.stdout) == (0, "")


def test_the_image_runs_as_nobody_special_and_gets_its_signals() -> None:
    """The user is a number other than 0, and no shell stands between the engine and the process."""
    last = dict(instructions())
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last["USER"])
    assert last["ENTRYPOINT"].startswith("[")
    assert last["CMD"].startswith("[")
    assert "--require-hashes" in " ".join(rest for word, rest in instructions() if word == "RUN")


def test_the_build_context_holds_what_the_image_copies_and_no_secret() -> None:
    """The ignore file lets through each copied path and keeps back everything else."""
    rules = [
        line for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] not in ("", "#")
    ]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    assert allowed == set(copied())
    assert all((ROOT / path).exists() for path in allowed)
    assert not any(fnmatch(".env", path) or path.startswith("tests") for path in allowed)


@pytest.fixture(scope="module")
def healthcheck() -> ModuleType:
    """Give the health check's module, which is a script and in no package."""
    spec = importlib.util.spec_from_file_location("healthcheck", DEPLOY / "healthcheck.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


def processes(folder: Path, **lines: str) -> Path:
    """Make a /proc with these command lines."""
    for number, line in lines.items():
        (folder / number.removeprefix("p")).mkdir()
        (folder / number.removeprefix("p") / "cmdline").write_bytes(line.replace(" ", "\0").encode() + b"\0")
    return folder


@pytest.mark.parametrize(
    ("first", "second", "role", "name"),
    [
        (
            "docker-init -- python -m superexam_rq worker",
            "python -m rq.cli worker -S json --name box-1 q",
            True,
            "box-1",
        ),
        ("python -m rq.cli worker -S json --name box-2 q", "python -c spawn", True, "box-2"),
        ("docker-init -- python -m superexam_rq worker", "python -m superexam_rq worker", True, None),
        ("docker-init -- python -m superexam_rq api", "python -m gunicorn wsgi:app", False, None),
    ],
    ids=["under an init", "as process 1", "while it starts", "the API"],
)
def test_the_health_check_knows_its_role_and_its_worker(
    healthcheck: ModuleType, tmp_path: Path, first: str, second: str, role: bool, name: str | None
) -> None:
    """It reads from the container's processes what runs there, since on the host's network any API would answer."""
    proc = processes(tmp_path, p1=first, p7=second)
    assert healthcheck.is_worker(proc) is role
    assert healthcheck.worker_name(proc) == name


@pytest.mark.parametrize(("suspended", "wrong"), [(True, None), (False, "the worker is starting")])
def test_a_worker_that_waits_to_start_is_healthy(
    healthcheck: ModuleType, monkeypatch: pytest.MonkeyPatch, suspended: bool, wrong: str | None
) -> None:
    """It waits for `rq resume`, or for Redis: to start it anew would not help."""
    server = FakeServer()
    redis = FakeRedis(server=server)
    if suspended:
        redis.set("superexam:suspended", 1)
    monkeypatch.setattr(healthcheck.Redis, "from_url", lambda *_, **__: redis)
    settings = Settings.from_env({})
    assert healthcheck.check_worker(settings, None) == wrong
    server.connected = False
    assert healthcheck.check_worker(settings, None) is None


# systemd


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_accepts_the_units(unit: Path, tmp_path: Path) -> None:
    """`systemd-analyze verify` finds nothing, given an interpreter where the unit expects it."""
    analyze = tool("systemd-analyze")
    for path in UNITS:
        (tmp_path / path.name).write_text(path.read_text().replace("/opt/superexam/.venv/bin/python", sys.executable))
    ran = run(analyze, "verify", "--man=no", tmp_path / unit.name)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_systemd_stops_a_worker_with_one_signal_and_waits() -> None:
    """SIGTERM goes to the worker alone, and the wait is the grace and a minute."""
    text = (DEPLOY / "systemd/superexam-worker@.service").read_text()
    assert "\nKillMode=mixed\n" in text
    assert f"\nTimeoutStopSec={GRACE + 60}\n" in text
    assert "\nRestart=always\n" in text


def test_a_worker_has_the_same_memory_everywhere() -> None:
    """Compose, systemd and Kubernetes give a worker one limit."""
    unit = (DEPLOY / "systemd/superexam-worker@.service").read_text()
    limits = (
        compose(COMPOSE)["services"]["worker"]["mem_limit"],
        container("superexam-worker")[1]["resources"]["limits"]["memory"],
        re.findall(r"^MemoryMax=(.*)$", unit, re.MULTILINE)[0],
    )
    assert limits == ("1536m", "1536Mi", "1536M")


# Kubernetes


def test_kubernetes_schemas_accept_the_manifests() -> None:
    """Each object fits its schema, with no field that the API server would drop."""
    validator = pytest.importorskip("kubernetes_validate")
    for each in manifests():
        if each["apiVersion"].startswith(("keda.sh", "kustomize.")):
            continue
        validator.validate(each, validator.latest_version(), strict=True)


def test_kustomize_builds_the_manifests() -> None:
    """The kustomization names files that exist, and gives both Deployments the image."""
    ran = run(tool("kubectl"), "kustomize", DEPLOY / "kubernetes")
    assert ran.returncode == 0, ran.stderr
    built = [each for each in yaml.safe_load_all(ran.stdout) if each["kind"] == "Deployment"]
    images = {each["spec"]["template"]["spec"]["containers"][0]["image"] for each in built}
    assert len(built) == 2
    assert len(images) == 1
    assert "/superexam-rq:" in images.pop()


def test_the_pods_settings_are_settings() -> None:
    """ConfigMap and Secret hold known names with values that the service takes, and a worker's grace fits its pod's."""
    given = manifest("ConfigMap", "superexam")["data"] | manifest("Secret", "superexam")["stringData"]
    assert set(given) <= {name for row in rows() for name in row.names}
    settings = Settings.from_env(given)
    pod, _ = container("superexam-worker")
    assert pod["terminationGracePeriodSeconds"] == settings.shutdown_grace + 60


@pytest.mark.parametrize("deployment", ["superexam-api", "superexam-worker"])
def test_the_pods_run_confined(deployment: str) -> None:
    """No root, no rights, no writing but to /tmp, and no variables of other Services (REDIS_PORT=tcp://...)."""
    pod, only = container(deployment)
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    rights = only["securityContext"]
    assert (rights["readOnlyRootFilesystem"], rights["allowPrivilegeEscalation"]) == (True, False)
    assert rights["capabilities"] == {"drop": ["ALL"]}
    assert [mount["mountPath"] for mount in only["volumeMounts"]] == ["/tmp"]


def test_the_probes_ask_routes_that_exist() -> None:
    """Liveness does not depend on Redis; readiness does."""
    _, api = container("superexam-api")
    paths = {probe: api[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {"startupProbe": "/health/live", "livenessProbe": "/health/live", "readinessProbe": "/health"}
    routes = {rule.rule for rule in create_app(Settings.from_env({})).url_map.iter_rules()}
    assert set(paths.values()) <= routes


def test_keda_counts_waiting_and_running_jobs() -> None:
    """The keys are RQ's own for this queue and prefix; the sum scales, and never to zero."""
    spec = manifest("ScaledObject", "superexam-worker")["spec"]
    queue = Queue(Settings().queue_name, connection=FakeRedis())
    keys = {trigger["name"]: trigger["metadata"]["listName"] for trigger in spec["triggers"]}
    assert keys == {"queued": queue.key, "running": StartedJobRegistry(queue=queue).key}
    assert spec["advanced"]["scalingModifiers"]["formula"] == "queued + running"
    assert spec["minReplicaCount"] > 0
