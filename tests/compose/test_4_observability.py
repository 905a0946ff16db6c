"""A real Prometheus scrapes the running loop, and every query of every alert and dashboard is answered with data."""

import json
import re
import shutil
import subprocess
from typing import Any

import httpx
import yaml

from liveshelf.client import Client
from tests.compose.stack import ROOT, Compose

PROMETHEUS = "http://127.0.0.1:19090"
WITHOUT_GRAFANA = ("prometheus", "alertmanager", "store-exporter")
COMPARED = re.compile(r"^(?P<figure>.*\S)\s+[<>]=?\s+[\d.]+$")


def queries() -> dict[str, str]:
    """Where → expression; of an alert the figure, without what it is compared to; of a recording rule what it computes, not its name."""
    found = {}
    for group in yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())["groups"]:
        for rule in group["rules"]:
            found[f"rule {rule['record']}"] = rule["expr"]
    for group in yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            compared = COMPARED.match(rule["expr"])
            assert compared, f"{rule['alert']} compares a figure with a number"
            found[f"alert {rule['alert']}"] = compared["figure"]
    for file in sorted((ROOT / "deploy/grafana/dashboards").glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel["targets"]:
                found[f"{file.stem}: {panel['title']} {target['refId']}"] = target["expr"]
    return found


def ask(expression: str) -> list[Any]:
    answer = httpx.get(f"{PROMETHEUS}/api/v1/query", params={"query": expression}, timeout=10, trust_env=False).json()
    assert answer["status"] == "success", (expression, answer)
    return list(answer["data"]["result"])


def test_every_query_is_answered(compose: Compose) -> None:
    """Against the loop with some traffic on it; each role's scrape is up."""
    compose.run("--profile", "observability", "up", "--detach", "--wait", "--no-build", *WITHOUT_GRAFANA, timeout_s=120)
    with Client(compose.settings.scoring_address, deadline_ms=5_000) as client:

        def all_answered() -> bool:
            compose.post({"client_id": "watched", "name": "view_item", "items": [{"item_id": "sku-00001"}]})
            shelf = client.recommend(client_id="watched")
            click = [{"item_id": shelf.items[0].item_id}]
            compose.post({"client_id": "watched", "name": "select_item", "request_id": shelf.request_id, "items": click})
            return all(ask(expression) for expression in queries().values())

        compose.step()
        try:
            compose.until(all_answered, "every query has an answer", 120)
        finally:
            for where, expression in queries().items():
                answers = ask(expression)
                values = ", ".join(f"{float(answer['value'][1]):g}" for answer in answers[:4])
                print(f"  {where:<52} {len(answers)} series: {values}")
    assert {one["metric"]["job"] for one in ask("up == 1")} == {
        "collector",
        "agents",
        "joiner",
        "scoring",
        "trainer",
        "model-server",
        "store",
    }
    assert not ask('ALERTS{alertstate="firing"}')


def test_rules_and_routes() -> None:
    """promtool's unit tests of every alert, and both programs' checks of the files; amtool: a page goes to the pager, all else to the tickets."""
    checks = (
        [tool("promtool"), "test", "rules", "tests.yml"],
        [tool("promtool"), "check", "rules", "rules.yml", "alerts.yml"],
        [tool("amtool"), "check-config", "../alertmanager/alertmanager.yml"],
    )
    for words in checks:
        done = subprocess.run(words, cwd=ROOT / "deploy/prometheus", capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        print("\n" + (done.stdout + done.stderr).strip())
    for severity, receiver in {"page": "pager", "ticket": "tickets"}.items():
        config = f"--config.file={ROOT}/deploy/alertmanager/alertmanager.yml"
        routed = subprocess.run(
            [tool("amtool"), "config", "routes", "test", config, f"severity={severity}"], capture_output=True, text=True
        )
        assert routed.stdout.strip() == receiver
        print(f"severity={severity} goes to {routed.stdout.strip()}")


def test_every_alert_has_its_runbook() -> None:
    runbooks = (ROOT / "docs/operations/runbooks.md").read_text()
    for group in yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            assert f"\n## {rule['alert']}\n" in runbooks, rule["alert"]
            assert rule["annotations"]["runbook"] == f"docs/operations/runbooks.md#{rule['alert'].lower()}"


def tool(name: str) -> str:
    path = shutil.which(name)
    assert path, f"{name} is not installed (Debian: prometheus, prometheus-alertmanager)"
    return path
