import pytest
import yaml

from recurra.config.load import parse
from recurra.errors import ConfigError
from recurra.orchestration.job_file import JobFile
from recurra.orchestration.render import RenderOptions, render_kubernetes, render_serve
from recurra.serving.run import Release, ServeRun

VALUES = {
    "name": "sms",
    "task": "language_model",
    "data": {"train": "s3://bucket/train", "eval": "s3://bucket/valid"},
    "train": {"workers": [1, 4], "steps": 100, "threads": 2, "stop": {"max_duration": "2h"}},
    "publish": {"model": "sms", "alias": "production"},
    "serve": {"replicas": [0, 3], "shutdown_s": 300, "deadline_s": 90, "cpus_per_replica": 0.5},
}


def job(**changes):
    return parse({key: value for key, value in {**VALUES, **changes}.items() if value is not None}, JobFile)


def documents(job_file, **options):
    text = render_kubernetes(job_file, RenderOptions(**options))
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def workers(document):
    spec = document["spec"]
    cluster = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    return cluster["workerGroupSpecs"][0]


def test_the_same_job_gives_the_same_text():
    """Manifests are reviewed and compared: an order that changes by chance would look like a change."""
    assert render_kubernetes(job()) == render_kubernetes(job())


def test_the_job_file_in_the_cluster_is_the_one_that_was_given():
    """Overrides and all: what is trained there is what was read here."""
    given = job()
    config_map = documents(given)["ConfigMap"]

    assert parse(yaml.safe_load(config_map["data"]["job.yaml"]), JobFile) == given


def test_the_head_finds_the_job_file_where_the_entrypoint_looks():
    """The driver runs on the head in SidecarMode."""
    rendered = documents(job())
    spec = rendered["RayJob"]["spec"]
    pod = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (mount,), (volume,) = pod["containers"][0]["volumeMounts"], pod["volumes"]

    assert spec["submissionMode"] == "SidecarMode"
    assert spec["entrypoint"] == f"recurra train {mount['mountPath']}/{next(iter(rendered['ConfigMap']['data']))}"
    assert mount["name"] == volume["name"]
    assert volume["configMap"]["name"] == rendered["ConfigMap"]["metadata"]["name"]


def test_the_service_gets_what_deploy_would_send():
    """serveConfigV2 holds only what the job file sets; with the defaults it is the same service."""
    given = job()
    document = yaml.safe_load(documents(given)["RayService"]["spec"]["serveConfigV2"])
    (application,) = document["applications"]

    assert ServeRun.model_validate(application["args"]) == given.serve_run()
    assert application["import_path"] == given.serve_run().application()["import_path"]
    assert yaml.safe_load(render_serve(given)) == document


def test_an_alias_that_has_moved_changes_the_manifest():
    """KubeRay acts on what has changed: with the alias alone in it, a new version would never be rolled out."""
    given = job()
    one, other = (RenderOptions(release=Release(digest=letter * 64)) for letter in "ab")
    document = yaml.safe_load(documents(given, release=one.release)["RayService"]["spec"]["serveConfigV2"])

    assert document["applications"][0]["args"]["release"]["digest"] == "a" * 64
    assert render_kubernetes(given, one) != render_kubernetes(given, other)
    assert render_kubernetes(given, one) == render_kubernetes(given, one)


def test_an_elastic_job_gets_a_group_that_ray_may_scale():
    """Ray Train asks the autoscaler for workers; without one the upper number is never reached."""
    elastic, fixed = documents(job())["RayJob"], documents(job(train={"workers": 3, "steps": 1}))["RayJob"]

    assert elastic["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    assert (workers(elastic)["minReplicas"], workers(elastic)["maxReplicas"]) == (1, 4)
    assert fixed["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is False
    assert (workers(fixed)["replicas"], workers(fixed)["maxReplicas"]) == (3, 3)


def test_a_service_that_scales_to_zero_keeps_a_pod_that_answers():
    """Without any proxy the first request after an idle night would find nobody."""
    group = workers(documents(job())["RayService"])

    assert (group["minReplicas"], group["maxReplicas"]) == (1, 3)
    assert group["rayStartParams"]["num-cpus"] == "1"


def test_grace_periods_grow_with_what_a_replica_may_take():
    """serve.shutdown_s of 300 s inside a grace period of 180 s would be a promise that Kubernetes breaks."""
    service = documents(job())["RayService"]
    pod = workers(service)["template"]["spec"]
    environment = {item["name"]: item["value"] for item in pod["containers"][0]["env"]}
    drain_s = int(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])

    assert pod["terminationGracePeriodSeconds"] > drain_s > 300
    assert service["spec"]["rayClusterDeletionDelaySeconds"] > 90


def test_kubernetes_outlasts_the_time_that_the_run_gives_itself():
    """The run ends itself with a checkpoint and a report; a deadline that is nearer would cut it off."""
    assert documents(job())["RayJob"]["spec"]["activeDeadlineSeconds"] > 2 * 3600
    assert "activeDeadlineSeconds" not in documents(job(train={"steps": 1}))["RayJob"]["spec"]


def test_gpu_workers_ask_for_one_and_tolerate_their_taint():
    """GPU nodes are tainted so that nothing else fills them."""
    group = workers(documents(job(), gpu=True)["RayJob"])
    pod = group["template"]["spec"]

    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert "nvidia.com/gpu" not in str(workers(documents(job(), gpu=True)["RayService"]))


def test_image_and_namespace_are_written_where_they_are_wanted():
    """Without a namespace kubectl or kustomize decides."""
    plain = documents(job())
    named = documents(job(), namespace="team", image="registry.example.com/recurra:7", cluster=True)

    assert all("namespace" not in document["metadata"] for document in plain.values())
    assert {document["metadata"]["namespace"] for document in named.values()} == {"team"}
    assert set(named) == {"RayCluster", "ConfigMap", "RayJob", "RayService"}
    assert str(named).count("registry.example.com/recurra:7") == 6


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [({"serve": None, "publish": None}, {"ConfigMap", "RayJob"}), ({"train": None, "data": None}, {"RayService"})],
)
def test_a_job_that_only_trains_or_only_serves_gives_only_that(changes, kinds):
    """Each half of a job file stands on its own."""
    assert set(documents(job(**changes))) == kinds


def test_a_job_that_does_neither_says_what_to_add():
    """An empty output would be applied without complaint."""
    with pytest.raises(ConfigError, match="neither trains nor serves"):
        render_kubernetes(job(train=None, publish=None, serve=None))


@pytest.mark.parametrize("name", ["a" * 45, "9lives"])
def test_a_name_that_kubernetes_refuses_is_refused_here(name):
    """KubeRay makes names of 47 letters longer itself, and a name starts with a letter."""
    with pytest.raises(ConfigError, match="cannot be used on Kubernetes"):
        render_kubernetes(job(name=name))


def test_keys_of_this_machine_are_not_in_the_manifests(monkeypatch):
    """Manifests are committed."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    monkeypatch.setenv("RECURRA_API_KEY", "rk-1234567890")
    text = render_kubernetes(job(), RenderOptions(cluster=True))

    assert "wJalrXUtnFEMI" not in text
    assert "rk-1234567890" not in text
