"""Which tests `make test` runs, and which it leaves to `make test-all`."""

import ast
import pathlib

TESTS = pathlib.Path(__file__).resolve().parents[1]


def optional(function: ast.FunctionDef) -> bool:
    """Whether a test is skipped where PyTorch is not installed."""
    calls = (ast.unparse(node) for node in ast.walk(function) if isinstance(node, ast.Call))
    return "pytest.importorskip('torch')" in calls


def test_what_needs_pytorch_is_run_where_pytorch_is_installed():
    """`make test` does without PyTorch, and only `make test-all` installs it."""
    found = {
        f"{file.relative_to(TESTS)}::{node.name}": map(ast.unparse, node.decorator_list)
        for file in TESTS.rglob("*_test.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and optional(node)
    }
    assert found
    assert [name for name, marks in found.items() if "pytest.mark.slow" not in marks] == []
