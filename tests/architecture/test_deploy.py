"""What deploy/ holds is checked with the tools that will read it: promtool, Ray's own schema, Grafana's rules."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from recurra.serving.run import IMPORT_PATH, ServeRun
from recurra.telemetry.table import BY_NAME

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/recurra.json").read_text())
RULES = yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text())

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian package prometheus)"
)


def panels():
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions():
    """Every PromQL expression of rules and dashboard, with where it stands."""
    for group in RULES["groups"]:
        for rule in group["rules"]:
            yield rule.get("record") or rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def promtool(*arguments):
    done = subprocess.run(["promtool", *map(str, arguments)], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def series_of(expression):
    """(metric of the table, suffix, selector) of each series that an expression reads."""
    for match in re.finditer(r"\b(recurra_[a-z0-9_]+)(\{[^}]*\})?", expression):
        name, selector = match.groups()
        suffix = next((s for s in ("_bucket", "_sum", "_count") if name.endswith(s) and name not in BY_NAME), "")
        yield name.removesuffix(suffix), suffix, selector or ""


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_an_expression_reads_only_series_of_the_table(where, expression):
    """A metric that is renamed in the table would leave an empty panel and an alert that never fires."""
    for name, suffix, selector in series_of(expression):
        metric = BY_NAME[name]
        assert bool(suffix) == (metric.kind == "histogram")
        allowed = {*metric.labels, *(["le"] if suffix else []), *(["source"] if metric.kind == "gauge" else [])}
        assert set(re.findall(r'(\w+)\s*[=!]~?\s*"', selector)) <= allowed
        for grouped in re.findall(r"\bby \(([^)]*)\)", expression):
            assert {label.strip() for label in grouped.split(",")} <= allowed | {"le"}


def test_counters_are_read_as_rates():
    """The raw value of a counter says only how long ago a process started."""
    for where, expression in expressions():
        for name, _, _ in series_of(expression):
            if BY_NAME[name].kind == "counter":
                assert re.search(rf"(rate|increase)\({name}", expression), f"{where}: {expression}"


@needs_promtool
def test_prometheus_takes_the_configuration():
    """A scrape configuration with a mistake keeps Prometheus from starting."""
    promtool("check", "config", "--syntax-only", DEPLOY / "prometheus/prometheus.yml")
    promtool("check", "rules", DEPLOY / "prometheus/rules.yml")


@needs_promtool
def test_alerts_fire_on_what_they_are_for():
    """Each is fed with series on which it must be quiet first and fire later."""
    promtool("test", "rules", DEPLOY / "prometheus/rules_test.yml")


def test_every_alert_has_a_test_and_says_what_to_do():
    """An alert at night is read by somebody who did not write it."""
    tested = (DEPLOY / "prometheus/rules_test.yml").read_text()
    for group in RULES["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                assert {"summary", "action"} <= rule["annotations"].keys()
                assert rule["labels"]["severity"] in {"warning", "critical"}
                assert f"alertname: {rule['alert']}" in tested


@needs_promtool
def test_prometheus_parses_every_panel(tmp_path):
    """Grafana shows a syntax error only when somebody opens the panel."""
    variables = {"$__rate_interval": "5m", "$model": ".*", "$run": ".*"}
    rules = []
    for index, (_, expression) in enumerate(expressions()):
        for variable, value in variables.items():
            expression = expression.replace(variable, value)
        rules.append({"record": f"panel_{index}", "expr": expression})
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))

    promtool("check", "rules", file)


def test_panels_explain_themselves_and_do_not_overlap():
    """Two panels on one place hide each other."""
    taken = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert all(panel["description"] and panel["targets"] for panel in panels())


def test_the_serve_file_passes_ray_and_our_own_schema():
    """`serve deploy` refuses unknown keys, and replicas refuse unknown arguments, when it is too late."""
    schema = pytest.importorskip("ray.serve.schema")
    document = yaml.safe_load((DEPLOY / "serve.yaml").read_text())

    schema.ServeDeploySchema.model_validate(document)
    for application in document["applications"]:
        run = ServeRun.model_validate(application["args"])
        assert application["import_path"] == IMPORT_PATH
        assert (application["name"], application["route_prefix"]) == (run.name, run.serve.route_prefix)


def test_the_image_is_pinned_unprivileged_and_has_what_kuberay_calls():
    """Without wget KubeRay never finds a serving pod ready; as root most clusters refuse it."""
    text = (DEPLOY / "Dockerfile").read_text()

    assert "python:3.11-slim" in text
    assert "--constraint /build/constraints.txt" in text
    assert re.search(r"apt-get install .*\bwget\b", text)
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["1000:1000"]
    assert "ENTRYPOINT" not in re.sub(r"#.*", "", text), "ray has to be process 1 to get SIGTERM"
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        assert all((ROOT / name).exists() for name in source.split())


def test_the_image_holds_nothing_but_the_program():
    """A key in a working copy must not end up in an image that is pushed somewhere."""
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]

    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "constraints.txt",
        "platform",
    }
