"""Our client of the container API, and the fake daemon that it is tested with, against what others publish of that API.

The API's description is Docker's own, from Debian's package of its sources; the other client is Docker's for Python.
Both are borrowed for the test, and it skips with the reason where they cannot be had. What a real daemon does stands in
`test_podman`.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from tests.engine.borrowed import debian, wheels
from tests.engine.test_containers import BODY, IMAGE, Machine, plan

from madang.engine.contract import Verdict

yaml = pytest.importorskip("yaml", reason="the API's description is YAML")
pytestmark = [pytest.mark.peer, pytest.mark.timeout(600)]
KINDS = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}
WORDS = {"boolean": r"0|1|true|false", "integer": r"-?\d+", "string": r"[^\x00]*"}


class Description:
    """The API as its publisher describes it (Swagger 2.0)."""

    def __init__(self, path):
        # The fast loader where there is one: the text has 12,000 lines.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        self.text = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
        patterns = {name: re.sub(r"\\{\w+\\}", ".+", re.escape(name)) for name in self.text["paths"]}
        # The longest first: `/containers/create` is not a container's id.
        self._patterns = sorted(patterns.items(), key=lambda item: ("{" in item[0], -len(item[0])))

    def operation(self, method, path):
        for name, pattern in self._patterns:
            if re.fullmatch(pattern, path) and method.lower() in self.text["paths"][name]:
                return self.text["paths"][name][method.lower()]
        raise AssertionError(f"the API has no {method} {path}")

    def flatten(self, schema):
        """Return a schema with its references followed and its parts put together."""
        while "$ref" in schema:
            schema = self.text["definitions"][schema["$ref"].rpartition("/")[2]]
        merged = {**schema, "properties": dict(schema.get("properties", {}))}
        for part in schema.get("allOf", ()):
            found = self.flatten(part)
            merged["properties"] |= found["properties"]
            merged.setdefault("required", []).extend(found.get("required", ()))
            merged.setdefault("type", found.get("type"))
        return merged

    def check(self, value, schema, at, *, is_part=False):
        """Fail where a value is not as its schema says; an object may have no field that the schema does not name.

        With `is_part` it may lack some: the fake answers what is read of an answer, and nothing else.
        """
        schema = self.flatten(schema)
        if value is None:
            return
        kind = schema.get("type") or ("object" if schema["properties"] else None)
        assert kind is None or isinstance(value, KINDS[kind]), f"{at}: {value!r} is no {kind}"
        assert not (kind == "integer" and isinstance(value, bool)), f"{at}: {value!r} is no integer"
        assert "enum" not in schema or value in schema["enum"], f"{at}: {value!r} is none of {schema['enum']}"
        if isinstance(value, list):
            for number, one in enumerate(value):
                self.check(one, schema.get("items", {}), f"{at}[{number}]", is_part=is_part)
        if isinstance(value, dict):
            self._check_fields(value, schema, at, is_part=is_part)

    def _check_fields(self, value, schema, at, *, is_part):
        lacking = set() if is_part else set(schema.get("required", ())) - set(value)
        assert not lacking, f"{at}: lacks {lacking}"
        others = schema.get("additionalProperties")
        for name, one in value.items():
            inner = schema["properties"].get(name, others)
            assert inner is not None or not (schema["properties"] or others is False), f"{at}: no field {name}"
            if isinstance(inner, dict):
                self.check(one, inner, f"{at}.{name}", is_part=is_part)


@pytest.fixture(scope="module")
def description():
    root = debian("docker-api", "golang-github-docker-docker-dev")
    (path,) = root.rglob("docker/docker/api/swagger.yaml")
    return Description(path)


@pytest.fixture
def machine(tmp_path):
    with Machine(tmp_path) as machine:
        yield machine


def live_a_life(machine):
    """Let a container be made, found, read, taken over, ended and refused: all that our client ever asks."""
    with machine.start() as engine:
        engine.wait_for(Verdict.READY, 60)
        assert engine.client.post("/v1/chat/completions", json=BODY).status_code == 200
        engine.process.terminate()
        assert engine.process.wait(60) == 0
    machine.daemon.images.clear()
    with machine.start() as engine:
        assert engine.process.wait(60) == 1
    return machine.daemon.exchanges


def test_what_we_ask_and_what_the_fake_answers_is_the_api_as_it_is_described(description, machine):
    assert (description.text["basePath"], description.text["swagger"]) == ("/v1.41", "2.0")
    exchanges = live_a_life(machine)
    seen = set()
    for method, path, query, body, status, answer in exchanges:
        operation = description.operation(method, path)
        seen.add(operation["operationId"])
        given = {one["name"]: one for one in operation.get("parameters", ())}
        for name, value in query.items():
            assert given[name]["in"] == "query", f"{path}: no parameter {name}"
            assert re.fullmatch(WORDS[given[name]["type"]], value), f"{path}: {name}={value}"
        described = next((one for one in given.values() if one["in"] == "body"), None)
        assert (body is None) or described is not None, f"{method} {path} takes no body"
        if body is not None:
            description.check(body, described["schema"], f"{method} {path}")
        assert status in operation["responses"], f"{method} {path} never answers {status}"
        if answer is not None:
            schema = operation["responses"][status].get("schema", {})
            description.check(answer, schema, f"{method} {path} {status}", is_part=True)
    wanted = {"ImageInspect", "ContainerCreate", "ContainerStart", "ContainerWait", "ContainerLogs", "ContainerStop"}
    assert seen >= wanted | {"ContainerDelete", "ContainerList"}


def test_the_checker_finds_what_is_wrong(description):
    schema = next(
        one["schema"]
        for one in description.operation("POST", "/containers/create")["parameters"]
        if one["in"] == "body"
    )
    description.check({"Image": "x", "HostConfig": {"NanoCpus": 1}}, schema, "")
    for wrong in (
        {"Images": "x"},
        {"Image": 1},
        {"HostConfig": {"NanoCPUs": 1}},
        {"HostConfig": {"NanoCpus": "1"}},
        {"HostConfig": {"Mounts": [{"Type": "folder"}]}},
        {"HostConfig": {"Ulimits": [{"Name": "memlock", "Soft": "-1"}]}},
    ):
        with pytest.raises(AssertionError):
            description.check(wrong, schema, "")
    with pytest.raises(AssertionError):
        description.operation("GET", "/containers")


SCRIPT = """
import json, sys
import docker
from docker.types import LogConfig, Mount, Ulimit

socket, name, text = sys.argv[1:]
wish = json.loads(text)
host = wish["HostConfig"]
api = docker.APIClient(base_url="unix://" + socket, version="1.41", timeout=60)
made = api.create_host_config(
    network_mode=host["NetworkMode"],
    init=host["Init"],
    auto_remove=host["AutoRemove"],
    restart_policy=host["RestartPolicy"],
    mounts=[Mount(one["Target"], one["Source"], type=one["Type"], read_only=one["ReadOnly"]) for one in host["Mounts"]],
    tmpfs=host["Tmpfs"],
    shm_size=host["ShmSize"],
    mem_limit=host["Memory"],
    memswap_limit=host["MemorySwap"],
    nano_cpus=host["NanoCpus"],
    pids_limit=host["PidsLimit"],
    oom_score_adj=host["OomScoreAdj"],
    devices=[f"{one['PathOnHost']}:{one['PathInContainer']}:{one['CgroupPermissions']}" for one in host["Devices"]],
    cap_drop=host["CapDrop"],
    cap_add=host["CapAdd"],
    security_opt=host["SecurityOpt"],
    ulimits=[Ulimit(name=one["Name"], soft=one["Soft"], hard=one["Hard"]) for one in host["Ulimits"]],
    log_config=LogConfig(type=host["LogConfig"]["Type"], config=host["LogConfig"]["Config"]),
)
config = api.create_container_config(
    wish["Image"],
    wish["Cmd"],
    entrypoint=wish["Entrypoint"],
    environment=wish["Env"],
    working_dir=wish["WorkingDir"],
    labels=wish["Labels"],
    stop_signal=wish["StopSignal"],
    host_config=made,
)
said = {"config": json.loads(json.dumps(config))}
assert not any("podman" in one["Name"].lower() for one in api.version()["Components"])
container = api.create_container_from_config(config, name)["Id"]
try:
    api.create_container_from_config(config, name)
except docker.errors.APIError as error:
    said["twice"] = error.status_code
api.start(container)
labels = [f"{name}={value}" for name, value in wish["Labels"].items()]
said["found"] = [(one["Id"] == container, one["State"]) for one in api.containers(all=True, filters={"label": labels})]
said["log"] = b"".join(api.logs(container, stream=True, follow=True)).decode()
said["code"] = api.wait(container)["StatusCode"]
api.stop(container, timeout=5)
api.remove_container(container, v=True, force=True)
try:
    api.remove_container(container)
except docker.errors.NotFound:
    said["gone"] = True
print(json.dumps(said))
"""


def test_dockers_own_client_would_ask_for_the_same_container_and_finds_its_way_in_the_fake(machine, tmp_path):
    folder = wheels("docker==7.1.0")
    launch = plan(machine.driver, tmp_path)
    Path(launch.run_folder).mkdir()
    (tmp_path / "plan" / "key").write_text("a-key", encoding="ascii")
    # Ends by itself, with a word about it.
    (tmp_path / "plan" / "file-config.json").write_text('{"fail_load": "version"}', encoding="ascii")
    argv = [sys.executable, "-c", SCRIPT, str(machine.socket), launch.name, msgspec.json.encode(launch.body).decode()]
    done = subprocess.run(argv, env={"PYTHONPATH": str(folder)}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    config = said["config"]
    assert config["Image"] == IMAGE
    differing = {name: (config.get(name), value) for name, value in launch.body.items() if config.get(name) != value}
    differing.pop("HostConfig", None)
    assert not differing
    host = {name: (config["HostConfig"].get(name), value) for name, value in launch.body["HostConfig"].items()}
    # It leaves out what is false anyway.
    assert {name: pair for name, pair in host.items() if pair[0] != pair[1] and (pair[0] or pair[1])} == {}
    assert (said["twice"], said["found"], said["gone"]) == (409, [[True, "running"]], True)
    assert "unknown variant" in said["log"]
    assert said["code"] == 1
    assert machine.daemon.containers == {}
