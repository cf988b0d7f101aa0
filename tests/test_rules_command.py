"""`edgelora rules`: what it lists, that a test covers each entry, and that docs/operators.md is made from it."""

import json

import pytest

from edgelora.cli import main
from edgelora_tools.certify import rules_table
from edgelora_tools.certify.report import row
from tests.gradients import documented


def rules(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["rules", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_json_lists_operators_with_opsets(capsys):
    status, out, _ = rules(capsys, "--json")
    result = json.loads(out)
    assert status == 0 and list(result) == ["operators"]
    entries = {(o["domain"], o["op"]): o for o in result["operators"]}
    assert len(entries) == len(result["operators"])
    assert entries["", "MatMul"]["opsets"] == list(range(11, 24))
    assert entries["", "MatMul"]["differentiable"] is True
    assert entries["", "LayerNormalization"]["opsets"] == list(range(17, 24))
    assert entries["com.microsoft", "FusedMatMul"]["opsets"] == [1]
    assert entries["", "ArgMax"]["differentiable"] is False
    assert sum(o["differentiable"] for o in result["operators"]) > 120
    assert all(set(o["opsets"]) <= set(range(11, 24)) and o["opsets"] for o in entries.values() if not o["domain"])


@pytest.mark.parametrize("operator", [o for o in rules_table.operators() if o.differentiable], ids=lambda o: o.op)
def test_what_is_listed_as_differentiable_is_tested(operator):
    if operator.how == rules_table.FUNCTION:
        passed, _ = documented.node_tests()[operator.op]  # and tests/gradients/test_node_tests.py runs them
        assert passed
    else:
        assert operator.cases


def test_one_operator_in_detail(capsys):
    status, out, _ = rules(capsys, "--op", "Div")
    assert status == 0
    assert "dA = dY/B" in out and "Div[2x3,3]" in out


def test_node_tests_of_one_operator(capsys):
    status, out, _ = rules(capsys, "--node-tests", "--op", "Tanh")
    assert status == 0
    assert "2 of 2 node tests pass (100.0 %)" in out
    status, out, _ = rules(capsys, "--node-tests", "--op", "Tanh", "--json")
    assert json.loads(out)["node_tests"]["total"] == 2


def test_unknown_operator_is_refused(capsys):
    status, _, err = rules(capsys, "--op", "Matmul")
    assert status == 2
    assert "no operator Matmul" in err


def test_spans_of_versions():
    assert rules_table.spans(range(11, 24)) == "11–23"
    assert rules_table.spans([1]) == "1"
    assert rules_table.spans([11, 12, 20, 22, 23]) == "11–12, 20, 22–23"


def test_document_is_made_of_the_table():
    operators = rules_table.operators()
    listed = [line[:4] for line in documented.cells("Differentiable")]
    wanted = [["–" if cell is None else str(cell) for cell in row(o)] for o in operators if o.differentiable]
    assert listed == wanted, documented.REMEDY
    for heading, how in [("Not differentiable", rules_table.NOTHING), ("Without a rule", rules_table.MISSING)]:
        names = ", ".join(row(o)[0] for o in operators if o.how == how)
        assert f"{names}." in documented.sections()[heading], documented.REMEDY
