"""ONNX's backend node tests, differentiated, operator by operator; docs/operators.md tells how many pass."""

import pytest

from edgelora_tools.certify.node_tests import certify, node_tests
from edgelora_tools.certify.report import name_of
from tests.gradients import documented

SHARE = 0.95

OPERATORS = sorted({test.operator for test in node_tests()})


@pytest.mark.parametrize("operator", OPERATORS, ids=name_of)
def test_node_tests_pass_or_have_their_reason(operator):
    outcomes = certify([test for test in node_tests() if test.operator == operator])
    failed = {o.name: o.reason for o in outcomes if o.status == "failed" and o.name not in documented.failing()}
    assert not failed
    total = sum(o.status != "excluded" for o in outcomes)
    assert total == documented.node_tests().get(name_of(operator), (0, 0))[1], documented.REMEDY


def test_at_least_95_percent_pass():
    passed, total = (sum(column) for column in zip(*documented.node_tests().values(), strict=True))
    assert total - passed == len(documented.failing()), documented.REMEDY
    assert passed >= SHARE * total


def test_a_wrong_rule_fails_its_node_tests(monkeypatch):
    from edgelora_tools.gradients import RULES

    tests = [test for test in node_tests() if test.name in ("test_tanh", "test_tanh_example")]
    assert [o.status for o in certify(tests)] == ["passed", "passed"]
    monkeypatch.setitem(RULES, ("", "Tanh"), lambda op, node, dy: (lambda: op.Mul(dy, node.outputs[0]),))
    assert [o.status for o in certify(tests)] == ["failed", "failed"]
    monkeypatch.delitem(RULES, ("", "Tanh"))
    assert {o.reason for o in certify(tests)} == {"no rule: Tanh"}
    monkeypatch.setitem(RULES, ("", "Tanh"), lambda op, node, dy: ())
    assert all("no gradient for" in o.reason for o in certify(tests))
