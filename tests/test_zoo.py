"""The zoo: a varied few train for real, the command certifies any source, and docs/zoo.md has every architecture."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from edgelora.cli.main import main
from edgelora_tools.certify import zoo as runner
from edgelora_tools.certify.architecture import CRASHED, REFUSED, TRAINS, WRONG, Certificate, certify
from edgelora_tools.sources.torch_export import module_source
from edgelora_tools.zoo import architectures

DOCS = Path(__file__).parent.parent / "docs" / "zoo.md"
KNOWN = architectures()
FEW = [
    ("text:distilbert", "dynamo"),
    ("decoders:gpt2", "torchscript"),
    ("vision:vit", "torchscript"),
    ("convnets:lenet", "dynamo"),
    ("networks:tab_transformer", "torchscript"),
    ("networks:actor_critic", "dynamo"),
]


@pytest.mark.parametrize(("name", "exporter"), FEW, ids=[name for name, _ in FEW])
def test_a_varied_few_train(name, exporter):
    found = certify(f"edgelora_tools.zoo.{name}", exporter)
    assert (found.verdict, found.reason) == (TRAINS, "")
    assert found.trained == found.points > 0
    assert found.parity is not None and found.parity < 1e-4
    assert found.gradient is not None and found.gradient < 1e-4
    assert found.loss is not None and found.loss[1] < found.loss[0]


class Small(torch.nn.Module):
    """Two layers whose second one's weight is read rather than called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(6, 8), torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(torch.tanh(self.first(x)), self.second.weight, self.second.bias)


def passed_by():
    torch.manual_seed(0)
    return Small(), {"x": torch.randn(2, 6)}


def nothing_to_adapt():
    return torch.nn.ReLU(), {"input": torch.randn(2, 6)}


def hanging():
    time.sleep(60)


def killed():
    os.abort()


def test_a_point_that_torch_passes_by_is_held_against_differences():
    found = certify("tests.test_zoo:passed_by", "dynamo")
    assert (found.verdict, found.compared, found.by_torch) == (TRAINS, 2, 1)


def test_what_cannot_be_adapted_is_refused_with_a_reason():
    found = certify("tests.test_zoo:nothing_to_adapt", "dynamo")
    assert found.verdict == REFUSED and "nothing to adapt" in found.reason


def test_a_wrong_gradient_is_seen(monkeypatch):
    """The oracle is no rubber stamp: a rule that is off by a factor is called wrong."""
    from edgelora_tools.gradients import RULES

    def wrong(op, node, dy):
        return (lambda: op.Mul(dy, 0.5),)

    monkeypatch.setitem(RULES, ("", "Tanh"), wrong)
    found = certify("edgelora_tools.zoo.networks:actor_critic", "torchscript")
    assert found.verdict == WRONG and "body.0" in found.reason


def test_an_onnx_file_is_certified_without_torch(tmp_path, capsys):
    module, inputs = passed_by()
    path = tmp_path / "small.onnx"
    ir.save(module_source(module, inputs, "small").model, path)
    assert main(["zoo", str(path), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["architectures"][str(path)]
    assert (found["verdict"], found["compared"], found["by_torch"]) == (TRAINS, 2, 0)


def test_a_hang_and_a_crash_do_not_end_the_run(tmp_path):
    results = tmp_path / "results.jsonl"
    found = list(runner.run(["tests.test_zoo:killed"], ["dynamo"], results))
    found += runner.run(["tests.test_zoo:hanging"], ["dynamo"], results, limit=3)
    assert [c.verdict for c in found] == [CRASHED, CRASHED]
    assert "SIGABRT" in found[0].reason
    assert "not done after 3 s" in found[1].reason
    assert runner.read(results) == found


def test_an_interrupted_run_continues(tmp_path, monkeypatch):
    results, done = tmp_path / "results.jsonl", []

    def instant(source, exporter, limit):
        done.append(source)
        return Certificate(source, exporter, verdict=TRAINS if source != "c:c" else REFUSED)

    monkeypatch.setattr(runner, "in_process", instant)
    list(runner.run(["a:a"], ["dynamo", "torchscript"], results))
    list(runner.run(["a:a", "b:b", "c:c"], ["dynamo", "torchscript"], results))
    assert done == ["a:a", "b:b", "c:c", "c:c"]  # those that train are not tried with the second exporter
    list(runner.run(["a:a", "c:c"], ["dynamo"], results, retry=True))
    assert done[4:] == ["c:c"]


def test_names_are_unique_and_described():
    assert len({a.name for a in KNOWN}) == len(KNOWN) >= 80
    for family in {a.family for a in KNOWN}:
        module = __import__(f"edgelora_tools.zoo.{family}", fromlist=["_"])
        assert all(getattr(module, a.name).__doc__ for a in KNOWN if a.family == family)


def test_factories_are_deterministic():
    """A source is opened several times (by either exporter, by `check`) and must be the same model."""
    from edgelora_tools.zoo.networks import mlp

    one, two = mlp()[0].state_dict(), mlp()[0].state_dict()
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_the_document_has_every_architecture_and_counts_them():
    text = DOCS.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \|.*\| ([^|]*) \|$", text, re.M)
    rows = [row for row in rows if row[0] != "architecture"]
    assert [name for name, _ in rows] == [a.name for a in KNOWN]
    verdicts = [verdict for _, verdict in rows]
    whole, part = verdicts.count("trains"), sum(v.startswith("trains in part") for v in verdicts)
    heading = re.search(r"\*\*(\d+) architectures: (\d+) train at every point, (\d+) at some, (\d+) do not", text)
    assert heading is not None
    assert [int(n) for n in heading.groups()] == [len(rows), whole, part, len(rows) - whole - part]
    for family, count, of in re.findall(r"^## ([\w ]+): (\d+) of (\d+) train", text, re.M):
        members = [v for (_, v), a in zip(rows, KNOWN, strict=True) if a.family == family.replace(" ", "_")]
        assert (members.count("trains"), len(members)) == (int(count), int(of))
