"""docs/rayjob.yaml is what KubeRay and Kubernetes take, and its cluster fits what its run file asks for.

`rayjob.schema.json` beside this file says what KubeRay takes, and where from; all that is Kubernetes' own is checked
against Kubernetes' schema. Each rule is shown to refuse a file that breaks it.
"""

import copy
import json
import re
import shlex
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from referencing import Registry, Resource

from pipeline.execution.ray_session import Resources
from schemas.config import RunFile
from schemas.run_file import load_run_file

HERE = Path(__file__).parent
FILE = HERE.parents[1] / "docs/rayjob.yaml"
KUBERNETES = "v1.37.0-local-strict"
QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|[MGTPE]|[KMGTPE]i)?")
GONE = object()
SPEC = ("spec",)
CLUSTER = (*SPEC, "rayClusterSpec")
HEAD = (*CLUSTER, "headGroupSpec")
WORKERS = (*CLUSTER, "workerGroupSpecs", 0)


def definitions(name: str = "_definitions") -> Any:
    """One of Kubernetes' own schemas, in which unknown fields are refused."""
    folder = files("kubernetes_validate").joinpath(f"kubernetes-json-schema/{KUBERNETES}")
    return json.loads(folder.joinpath(f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def schemas() -> dict[str, Draft202012Validator]:
    registry = Resource.from_contents(definitions()) @ Registry()
    schema = json.loads((HERE / "rayjob.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    named = {"RayJob": schema, "ConfigMap": definitions("configmap-v1")}
    return {
        kind: Draft202012Validator(one, registry=Resource.from_contents(one) @ registry) for kind, one in named.items()
    }


@pytest.fixture
def documents() -> dict[str, Any]:
    """The documents of the file, by kind."""
    return {one["kind"]: one for one in yaml.safe_load_all(FILE.read_text(encoding="utf-8"))}


def complaint(schema: Draft202012Validator, document: Any) -> str:
    """Where a document first breaks a schema, and how; "" where it does not."""
    error = best_match(schema.iter_errors(document))
    return f"{error.json_path}: {error.message}" if error else ""


def changed(document: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """A copy with another value at a path, or with none there."""
    document = copy.deepcopy(document)
    *above, last = path
    place = document
    for key in above:
        place = place[key]
    if value is GONE:
        del place[last]
    else:
        place[last] = value
    return document


def test_both_documents_are_what_their_schemas_want(documents, schemas):
    assert documents.keys() == {"ConfigMap", "RayJob"}
    assert {kind: complaint(schemas[kind], one) for kind, one in documents.items()} == {"ConfigMap": "", "RayJob": ""}


UNKNOWN_FIELDS = [
    (), ("metadata",), SPEC, CLUSTER, (*CLUSTER, "authOptions"), HEAD, (*HEAD, "template"), (*HEAD, "template", "spec"),
    WORKERS, (*WORKERS, "template", "spec", "containers", 0), (*WORKERS, "template", "spec", "volumes", 0, "configMap"),
]  # fmt: skip


@pytest.mark.parametrize("path", UNKNOWN_FIELDS, ids=lambda path: ".".join(map(str, path)) or "top")
def test_a_field_that_nobody_knows_is_refused(documents, schemas, path):
    found = complaint(schemas["RayJob"], changed(documents["RayJob"], (*path, "backofLimit"), 1))
    assert "('backofLimit' was unexpected)" in found


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec",), []),
        ((*SPEC, "entrypoint"), ["deit-pipeline", "run"]),
        ((*SPEC, "backoffLimit"), "3"),
        ((*SPEC, "backoffLimit"), -1),
        ((*SPEC, "backoffLimit"), 2**31),
        ((*SPEC, "shutdownAfterJobFinishes"), "true"),
        ((*SPEC, "submitterConfig"), {"backoffLimit": "0"}),
        ((*CLUSTER, "rayVersion"), 2.6),
        ((*CLUSTER, "authOptions"), "token"),
        ((*CLUSTER, "workerGroupSpecs"), {}),
        ((*HEAD, "rayStartParams", "num-cpus"), 0),
        ((*HEAD, "template", "spec", "containers"), []),
        ((*HEAD, "template", "spec", "containers", 0, "envFrom"), {}),
        ((*WORKERS, "replicas"), 4.5),
        ((*WORKERS, "rayStartParams"), None),
        ((*WORKERS, "template", "spec", "containers", 0, "image"), 1),
        ((*WORKERS, "template", "spec", "containers", 0, "resources", "limits"), ["64Gi"]),
    ],
)
def test_a_value_of_another_type_is_refused(documents, schemas, path, value):
    found = complaint(schemas["RayJob"], changed(documents["RayJob"], path, value))
    assert found.startswith("$." + re.sub(r"\.(\d+)", r"[\1]", ".".join(map(str, path))).split(".num-cpus")[0]), found


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("apiVersion",), "ray.io/v1alpha1"),
        (("kind",), "RayCluster"),
        ((*SPEC, "submissionMode"), "K8SJobMode"),
        ((*SPEC, "managedBy"), "me"),
        ((*SPEC, "deletionStrategy"), {"onSuccess": {"policy": "DeleteAll"}, "onFailure": {"policy": "DeleteNone"}}),
        ((*CLUSTER, "authOptions", "mode"), "Token"),
        ((*CLUSTER, "autoscalerOptions"), {"upscalingMode": "Bold"}),
        ((*HEAD, "serviceType"), "Public"),
    ],
)
def test_a_word_that_is_none_of_those_allowed_is_refused(documents, schemas, path, value):
    found = complaint(schemas["RayJob"], changed(documents["RayJob"], path, value))
    assert "is not one of" in found or "was expected" in found


REQUIRED = [
    ("apiVersion",), ("kind",), ("metadata", "name"), ("spec",), (*SPEC, "rayClusterSpec"), (*CLUSTER, "headGroupSpec"),
    (*HEAD, "template"), (*HEAD, "template", "spec"), (*HEAD, "template", "spec", "containers"),
    (*HEAD, "template", "spec", "containers", 0, "name"), (*WORKERS, "groupName"), (*WORKERS, "minReplicas"),
    (*WORKERS, "maxReplicas"), (*WORKERS, "template"), (*WORKERS, "template", "spec", "volumes", 0, "name"),
]  # fmt: skip


@pytest.mark.parametrize("path", REQUIRED, ids=lambda path: ".".join(map(str, path)))
def test_a_field_that_must_be_there_is_missed(documents, schemas, path):
    found = complaint(schemas["RayJob"], changed(documents["RayJob"], path, GONE))
    assert f"'{path[-1]}' is a required property" in found or "is not valid under any of the given schemas" in found


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ((*CLUSTER, "rayVersion"), GONE, "'rayVersion' is a required property"),
        ((*CLUSTER, "rayVersion"), "2.51.1", "does not match"),
        ((*CLUSTER, "authOptions", "enableK8sTokenAuth"), True, "False was expected"),
        ((*CLUSTER, "upgradeStrategy"), {"type": "Recreate"}, "False schema does not allow"),
        ((*SPEC, "shutdownAfterJobFinishes"), GONE, "'shutdownAfterJobFinishes' is a required property"),
        ((*SPEC, "shutdownAfterJobFinishes"), False, "True was expected"),
        ((*SPEC, "preRunningDeadlineSeconds"), 0, "0 is less than the minimum of 1"),
        ((*WORKERS, "resources"), {"GPU": "1"}, "False schema does not allow '16'"),
        ((*WORKERS, "rayStartParams", "labels"), "a=b", "False schema does not allow 'a=b'"),
        (("metadata", "name"), "deit_pipeline", "does not match"),
        (("metadata", "name"), "d" * 48, "is too long"),
    ],
)
def test_what_the_operator_would_refuse_later_is_refused(documents, schemas, path, value, said):
    assert said in complaint(schemas["RayJob"], changed(documents["RayJob"], path, value))


def pods(job: Any) -> Iterator[tuple[Any, Any]]:
    """Each group of nodes with its pod."""
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group, group["template"]["spec"]


def unfit(documents: dict[str, Any], run: RunFile) -> list[str]:
    """What of the two documents does not go together, or with what the run file asks for; one line each."""
    job, config, found = documents["RayJob"], documents["ConfigMap"], []
    words = shlex.split(job["spec"]["entrypoint"])
    if words[:2] != ["deit-pipeline", "run"] or words[-2:] != ["--address", "auto"]:
        found.append("the entrypoint does not run all stages on the cluster that is there")
    for group, pod in pods(job):
        (container,) = pod["containers"]
        volumes = {one["name"]: one.get("configMap", {}).get("name") for one in pod["volumes"]}
        mounted = {f"{one['mountPath']}/{key}" for one in container["volumeMounts"] for key in config["data"]
                   if volumes.get(one["name"]) == config["metadata"]["name"]}  # fmt: skip
        if words[words.index("-c") + 1] not in mounted:
            found.append(f"{container['name']} does not see the run file")
        resources = container["resources"]
        sizes = [*resources["requests"].values(), *resources["limits"].values()]
        found += [f"{container['name']}: {size!r} is no quantity" for size in sizes if not QUANTITY.fullmatch(size)]
        if any(resources["requests"].get(key) != size for key, size in resources["limits"].items()):
            found.append(f"{container['name']} is limited to other than it requests")
        if group["rayStartParams"].get("num-cpus") not in ("0", resources["requests"]["cpu"]):
            found.append(f"{container['name']} offers other CPUs to Ray than it has")
    if len({pod["containers"][0]["image"] for _, pod in pods(job)}) > 1:
        found.append("the pods have several images")
    return found + [f"no worker can seat {resources}" for resources in wanted(run) if not seated(job, resources)]


def wanted(run: RunFile) -> list[Resources]:
    """What labelling and training ask of a cluster of GPUs, each for all its devices."""
    assert run.cluster.device == "cuda" and run.cluster.devices
    return [Resources(count=run.cluster.devices, cpus=1 + one.workers, gpus=1) for one in (run.labels, run.train)]


def seated(job: Any, resources: Resources) -> bool:
    """Whether the workers of the cluster have that many resources at once."""
    offered = 0
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        requests = group["template"]["spec"]["containers"][0]["resources"]["requests"]
        each = min(int(requests["cpu"]) // resources.cpus, int(requests.get("nvidia.com/gpu", 0)) // resources.gpus)
        offered += each * group["replicas"] if group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] else 0
    return offered >= resources.count


@pytest.fixture
def run(documents, tmp_path) -> RunFile:
    """The run file that the file brings, read as a command reads it."""
    (tmp_path / "deit.toml").write_text(documents["ConfigMap"]["data"]["deit.toml"])
    return load_run_file(str(tmp_path / "deit.toml"), [])


def test_the_two_documents_and_the_run_file_in_them_go_together(documents, run):
    assert run.workspace.startswith("s3://")
    assert unfit(documents, run) == []


CONTAINER = ("template", "spec", "containers", 0)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (
            (*SPEC, "entrypoint"),
            "deit-pipeline run -c /config/deit.toml --address local",
            "the entrypoint does not run",
        ),
        ((*SPEC, "entrypoint"), "deit-pipeline run -c /deit.toml --address auto", "ray-head does not see the run file"),
        ((*WORKERS, *CONTAINER, "volumeMounts", 0, "name"), "conf", "ray-worker does not see the run file"),
        ((*WORKERS, *CONTAINER, "resources", "requests", "memory"), "64GB", "ray-worker: '64GB' is no quantity"),
        ((*WORKERS, *CONTAINER, "resources", "limits", "nvidia.com/gpu"), "2", "ray-worker is limited to other than"),
        ((*WORKERS, "rayStartParams", "num-cpus"), "32", "ray-worker offers other CPUs"),
        ((*WORKERS, *CONTAINER, "image"), "other", "the pods have several images"),
        ((*WORKERS, "replicas"), 3, "no worker can seat Resources(count=4, cpus=16, gpus=1)"),
        ((*WORKERS, "maxReplicas"), 3, "no worker can seat Resources(count=4, cpus=16, gpus=1)"),
        (
            (*WORKERS, *CONTAINER, "resources", "requests", "cpu"),
            "8",
            "no worker can seat Resources(count=4, cpus=16, gpus=1)",
        ),
    ],
)
def test_what_does_not_go_together_is_found(documents, run, path, value, said):
    found = unfit(documents | {"RayJob": changed(documents["RayJob"], path, value)}, run)
    assert any(line.startswith(said) for line in found), found
