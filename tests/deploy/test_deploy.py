"""What deploy/ says is what the server takes: settings, commands, ports, times and users, in every file the same."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

from cunho_server import __main__, forms, metrics, settings  # noqa: F401 (makes the metrics)
from cunho_server.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNIT = (DEPLOY / "systemd/cunho.service").read_text()
DOCKERFILE = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
MANUAL = (ROOT / "docs/operations.md").read_text()
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
#: What the supervisor waits for beyond CUNHO_SHUTDOWN_SECONDS before it kills a process, and to end itself.
STOP_MARGIN_SECONDS = 10


def kubernetes() -> dict[str, dict[str, Any]]:
    """The objects of deploy/kubernetes, by kind and name."""
    files = [path for path in (DEPLOY / "kubernetes").glob("*.yaml") if path.name != "kustomization.yaml"]
    found = [each for path in files for each in yaml.safe_load_all(path.read_text())]
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in found}


KUSTOMIZATION = yaml.safe_load((DEPLOY / "kubernetes/kustomization.yaml").read_text())
OBJECTS = kubernetes()
POD = OBJECTS["Deployment/cunho"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]


# --- settings


def env_file(path: str) -> dict[str, str]:
    """The variables of a file of lines NAME=VALUE."""
    lines = (DEPLOY / path).read_text().splitlines()
    pairs = [line.split("=", 1) for line in lines if line and not line.startswith("#")]
    return {name: value.strip("'") for name, value in pairs}


def image() -> dict[str, str]:
    """The variables that the image sets."""
    (words,) = re.findall(r"^ENV (PATH=.*)$", DOCKERFILE, re.MULTILINE)
    return dict(word.split("=", 1) for word in words.split())


def unit(name: str) -> list[str]:
    """The values of a key of the unit."""
    return re.findall(rf"^{name}=(.*)$", UNIT, re.MULTILINE)


#: The variables that a server finds, by how it is deployed.
ENVIRONMENTS: dict[str, Mapping[str, str]] = {
    "systemd": dict(each.split("=", 1) for each in unit("Environment")) | env_file("systemd/cunho.env"),
    "compose": image() | COMPOSE["services"]["cunho"]["environment"],
    "kubernetes": image() | env_file("kubernetes/cunho.env") | OBJECTS["Secret/cunho-database"]["stringData"],
}


@pytest.fixture(params=ENVIRONMENTS)
def deployed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of a server, deployed in one of the ways."""
    for name in [name for name in os.environ if name.startswith("CUNHO_")]:
        monkeypatch.delenv(name)
    for name, value in ENVIRONMENTS[request.param].items():
        if name.startswith("CUNHO_"):
            monkeypatch.setenv(name, value)
    return settings.load()


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(DEPLOY.rglob("*")) if path.is_file()],
    ids=lambda path: str(path.relative_to(DEPLOY)),
)
def test_every_variable_that_is_named_is_a_setting(path: Path) -> None:
    named = {name.removeprefix("CUNHO_").lower() for name in re.findall(r"\bCUNHO_\w+", path.read_text())}
    assert named - {"port"} <= Settings.model_fields.keys()  # CUNHO_PORT is what Kubernetes would set


def test_the_settings_are_accepted_and_open_to_nobody_without_tls_and_tokens(deployed: Settings) -> None:
    assert not forms.is_loopback(deployed.address)
    assert deployed.tls_certificate
    assert not deployed.development
    assert deployed.database_url


def test_processes_are_counted_where_a_container_sees_every_core_of_the_machine() -> None:
    assert "CUNHO_PROCESSES" in ENVIRONMENTS["compose"]
    assert "CUNHO_PROCESSES" in ENVIRONMENTS["kubernetes"]


# --- commands


def commands() -> Iterator[list[str]]:
    """The words after `cunho-server` wherever it is run."""
    for line in unit("ExecStart"):
        program, *words = line.split()
        assert program == "/opt/cunho/bin/cunho-server"
        yield words
    assert json.loads(re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)[0]) == ["cunho-server"]
    yield json.loads(re.findall(r"^CMD (.*)$", DOCKERFILE, re.MULTILINE)[0])
    for container in (*POD["initContainers"], CONTAINER):
        yield container["args"]
    probes = [json.loads(re.findall(r"^HEALTHCHECK .*?CMD (.*)$", DOCKERFILE, re.MULTILINE)[0])]
    probes += [CONTAINER[probe]["exec"]["command"] for probe in ("startupProbe", "readinessProbe")]
    for program, *words in probes:
        assert program == "cunho-server"
        yield words


@pytest.mark.parametrize("words", [*commands()], ids=" ".join)
def test_every_command_exists(words: list[str]) -> None:
    given, strays = __main__._parser().parse_known_args(words)
    assert given.run
    assert strays == []


# --- ports


def port(address: str) -> int:
    """The port of HOST:PORT."""
    return int(address.rpartition(":")[2])


def test_ports_agree(deployed: Settings) -> None:
    grpc, scraped = port(deployed.address), port(deployed.metrics_address)
    assert re.findall(r"^EXPOSE (.*)$", DOCKERFILE, re.MULTILINE) == [str(grpc)]
    assert {port(each) for each in COMPOSE["services"]["cunho"]["ports"]} == {grpc, scraped}
    assert {each["name"]: each["containerPort"] for each in CONTAINER["ports"]} == {"grpc": grpc, "metrics": scraped}
    (served,) = OBJECTS["Service/cunho"]["spec"]["ports"]
    assert (served["port"], served["targetPort"]) == (grpc, "grpc")
    ingress = OBJECTS["NetworkPolicy/cunho"]["spec"]["ingress"]
    assert {each["port"] for rule in ingress for each in rule["ports"]} == {"grpc", "metrics"}


# --- stopping, and being probed


def test_a_server_has_the_time_to_stop_that_its_settings_give_calls(deployed: Settings) -> None:
    needed = deployed.shutdown_seconds + STOP_MARGIN_SECONDS
    assert int(unit("TimeoutStopSec")[0]) > needed
    assert int(COMPOSE["services"]["cunho"]["stop_grace_period"].removesuffix("s")) > needed
    pause = int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1])
    assert POD["terminationGracePeriodSeconds"] > pause + needed


def test_a_database_that_is_away_ends_no_server() -> None:
    assert CONTAINER["livenessProbe"].keys() & {"exec", "grpc"} == set()
    assert unit("StartLimitIntervalSec") == ["0"]


# --- who it runs as, and what it reads


def test_images_run_as_the_user_that_the_files_are_made_for() -> None:
    (user,) = re.findall(r"^USER (\d+):\1$", DOCKERFILE, re.MULTILINE)
    context = POD["securityContext"]
    assert {context["runAsUser"], context["runAsGroup"], context["fsGroup"]} == {int(user)}
    assert f"as user {user}," in MANUAL
    assert f"chown -R {user} " in MANUAL


def test_what_the_settings_name_is_mounted() -> None:
    service = COMPOSE["services"]["cunho"]
    mounted = [each.split(":")[1] for each in service["volumes"]] + [
        f"/run/secrets/{each}" for each in service["secrets"]
    ]
    assert_below(ENVIRONMENTS["compose"], mounted)
    assert_below(ENVIRONMENTS["kubernetes"], [each["mountPath"] for each in CONTAINER["volumeMounts"]])
    assert {each["name"] for each in CONTAINER["volumeMounts"]} == {each["name"] for each in POD["volumes"]}


def assert_below(environment: Mapping[str, str], mounted: list[str]) -> None:
    for name, value in environment.items():
        for file in re.findall(r"/(?:etc|run)/[\w./-]+", value):
            assert any(file == each or file.startswith(f"{each}/") for each in mounted), (name, file)


def test_the_pods_refer_to_what_there_is() -> None:
    (generated,) = KUSTOMIZATION["configMapGenerator"]
    assert all((DEPLOY / "kubernetes" / file).exists() for file in (*KUSTOMIZATION["resources"], *generated["envs"]))
    for container in (*POD["initContainers"], CONTAINER):
        config, secret = container["envFrom"]
        assert config["configMapRef"]["name"] == generated["name"]
        assert f"Secret/{secret['secretRef']['name']}" in OBJECTS
    assert f"Secret/{POD['volumes'][0]['secret']['secretName']}" in OBJECTS
    labels = OBJECTS["Deployment/cunho"]["spec"]["template"]["metadata"]["labels"]
    assert OBJECTS["Service/cunho"]["spec"]["selector"] == labels
    for kind, selector in {"PodDisruptionBudget": "selector", "NetworkPolicy": "podSelector"}.items():
        assert OBJECTS[f"{kind}/cunho"]["spec"][selector] == {"matchLabels": labels}


def test_no_variable_of_the_cluster_is_taken_for_a_setting() -> None:
    assert POD["enableServiceLinks"] is False


def test_the_images_are_of_this_version() -> None:
    assert COMPOSE["services"]["cunho"]["image"] == f"cunho:{VERSION}"
    assert [each["newTag"] for each in KUSTOMIZATION["images"]] == [VERSION]
    assert f"--tag cunho:{VERSION} " in DOCKERFILE


# --- the manual


def test_the_manual_names_every_setting_and_no_other() -> None:
    (table,) = re.findall(r"^\| theme \|.*?\n\n", MANUAL, re.DOTALL | re.MULTILINE)
    listed = re.findall(r"`([A-Z]+(?:_[A-Z]+)*)`", table)
    named = {name.lower() for name in listed} | {name.lower() for name in re.findall(r"\bCUNHO_(\w+)", MANUAL)}
    assert len(listed) == len(set(listed))
    assert named - {"port"} <= Settings.model_fields.keys()
    assert Settings.model_fields.keys() - {name.lower() for name in listed} == {"ledger_seconds"}


@pytest.mark.parametrize("line", sorted(set(re.findall(r"cunho-server ((?:[a-z]+ ?)[^`\n]*)", MANUAL))))
def test_every_command_of_the_manual_exists(line: str) -> None:
    words = shlex.split(line.partition(",")[0].removesuffix("--help"))
    assert __main__._parser().parse_known_args(words)[1] == []


def test_the_manual_names_every_metric_and_no_other() -> None:
    there = {each.name for each in REGISTRY.collect() if each.name.startswith("cunho_")}
    named = set(re.findall(r"`(cunho_\w+?)(?:_total)?(?:\{.*?\})?`", MANUAL)) - {"cunho_app"}
    assert named == there


#: What is quoted in the manual's last table and said by PostgreSQL or the system.
SAID_BY_OTHERS = {
    "remaining connection slots are reserved",
    "too many clients",
    "Name or service not known",
    "password authentication failed",
    "permission denied for table",
}


def texts() -> Iterator[str]:
    """Every text in the code of the server, with "..." for what is put in when it runs."""
    for path in (*ROOT.glob("server/**/*.py"), *ROOT.glob("storage/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in parts)


def test_what_the_manual_quotes_is_said() -> None:
    (table,) = re.findall(r"^\| what you see .*?\n\n", MANUAL, re.DOTALL | re.MULTILINE)
    seen = [line.split(" | ")[0] for line in table.splitlines()]
    quoted = {quote for words in seen for quote in re.findall(r'"(.*?)"', words)}
    said = "\n".join(texts())
    unsaid = {quote for quote in quoted if not re.search(".*".join(map(re.escape, quote.split("..."))), said)}
    assert unsaid == SAID_BY_OTHERS


# --- the tools' own word, where they are


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze on this machine")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    there = UNIT.replace("/opt/cunho/bin/cunho-server", sys.executable)
    (tmp_path / "cunho.service").write_text(there)
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "cunho.service")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")


@pytest.mark.skipif(not shutil.which("kubectl"), reason="there is no kubectl on this machine")
def test_kustomize_puts_the_manifests_together() -> None:
    command = ["kubectl", "kustomize", str(DEPLOY / "kubernetes")]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    pods = next(each for each in yaml.safe_load_all(made) if each["kind"] == "Deployment")["spec"]["template"]["spec"]
    assert all(each["image"].endswith(f"/cunho:{VERSION}") for each in (*pods["initContainers"], *pods["containers"]))
    assert pods["containers"][0]["envFrom"][0]["configMapRef"]["name"].startswith("cunho-")
