"""The alert rules and the Grafana dashboard under deploy/ use metrics and labels that the service really has."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakeredis import FakeRedis
from prometheus_client.parser import text_string_to_metric_families
from rq import Queue

from superexam_rq import metrics

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"

FUNCTIONS = {"absent", "histogram_quantile", "increase", "max", "rate", "sum"}
WORDS = {"and", "by", "on", "or"}
SELECTOR = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(?:\{([^}]*)\})?")
MATCHER = re.compile(r"([a-z_]+)\s*(=~|!=|!~|=)\s*\"([^\"]*)\"")


def _alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def _panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((DEPLOY / "grafana/superexam.json").read_text())["panels"]
    return found


def _expressions() -> dict[str, str]:
    found = {f"alert {rule['alert']}": rule["expr"] for rule in _alerts()}
    for panel in _panels():
        found |= {f"panel {panel['title']} {target['refId']}": target["expr"] for target in panel["targets"]}
    return found


EXPRESSIONS = _expressions()


@pytest.fixture(scope="module")
def samples() -> dict[str, list[dict[str, str]]]:
    """Give the label sets of each sample that a service shows that has not done anything yet."""
    text, _ = metrics.exposition(Queue(connection=FakeRedis()))
    found: dict[str, list[dict[str, str]]] = defaultdict(list)
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found[sample.name].append(dict(sample.labels))
    found["up"] = [{}]
    return found


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_each_metric_and_label_exists(name: str, samples: dict[str, list[dict[str, str]]]) -> None:
    """A name in an expression is one of /metrics, and so is each label and each value that it is compared with."""
    expression = re.sub(r"\b(by|on)\s*\([^)]*\)", "", EXPRESSIONS[name])
    expression = re.sub(r"\[[^\]]*\]", "", expression)
    used = [match for match in SELECTOR.finditer(expression) if match[1] not in FUNCTIONS | WORDS]
    used = [match for match in used if not _inside_braces(expression, match.start())]
    assert used
    for match in used:
        assert match[1] in samples
        for label, _, pattern in MATCHER.findall(match[2] or ""):
            if label == "job":  # Prometheus' own
                continue
            values = {labels[label] for labels in samples[match[1]]}
            for word in pattern.split("|"):
                assert word in values


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_grouping_is_by_labels_that_exist(name: str, samples: dict[str, list[dict[str, str]]]) -> None:
    """What an expression groups by is a label of the metrics in it, or Prometheus' own."""
    known = {"instance", "job"}.union(*(labels for sets in samples.values() for labels in sets))
    for group in re.findall(r"\bby\s*\(([^)]*)\)", EXPRESSIONS[name]):
        assert {label.strip() for label in group.split(",")} <= known


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_expressions_are_balanced(name: str) -> None:
    """Brackets close in order, and a rate has a window."""
    opened = []
    for character in EXPRESSIONS[name]:
        if character in "([{":
            opened.append(character)
        elif character in ")]}":
            assert opened.pop() + character in {"()", "[]", "{}"}
    assert not opened
    assert len(re.findall(r"\b(?:rate|increase)\(", EXPRESSIONS[name])) == EXPRESSIONS[name].count("[")


def test_every_metric_is_on_the_dashboard(samples: dict[str, list[dict[str, str]]]) -> None:
    """Nothing is measured that nobody sees."""
    shown = " ".join(target["expr"] for panel in _panels() for target in panel["targets"])
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in samples}
    assert {name for name in families if name not in shown} == set()


def test_alerts_say_what_to_do() -> None:
    """Each alert has a severity, a summary of one line and a description; names are unique."""
    names = [rule["alert"] for rule in _alerts()]
    assert len(set(names)) == len(names) > 8
    for rule in _alerts():
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert "\n" not in rule["annotations"]["summary"]
        assert rule["annotations"]["description"]
        for label in re.findall(r"\$labels\.([a-z_]+)", rule["annotations"]["summary"]):
            assert label == "instance" or re.search(rf"by \([^)]*{label}", rule["expr"])


def test_panels_do_not_overlap() -> None:
    """Each panel of the dashboard has a place and an id of its own."""
    taken: set[tuple[int, int]] = set()
    for panel in _panels():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in _panels()}) == len(_panels())


def _inside_braces(text: str, place: int) -> bool:
    return text.count("{", 0, place) > text.count("}", 0, place)
