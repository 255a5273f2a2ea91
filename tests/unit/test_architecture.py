"""What import-linter cannot say of the house's rooms."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

from tests.support.processes import ROOT

SOURCES = sorted((ROOT / "psys").rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Modules, and names in modules, that a file imports, also within functions and under TYPE_CHECKING."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{name.name}" for name in node.names}
    return found


def test_one_file_imports_torch_rpc() -> None:
    rpc = [path.name for path in SOURCES if any(name.startswith("torch.distributed.rpc") for name in imports(path))]
    assert rpc == ["torch_rpc.py"]


def test_nothing_imports_pickle() -> None:
    assert [path.name for path in SOURCES if "pickle" in imports(path)] == []


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_psys_has_no_import_cycle() -> None:
    modules = {module_name(path) for path in SOURCES}
    graph = {module_name(path): (imports(path) & modules) - {module_name(path)} for path in SOURCES}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_files_are_rooms_not_halls() -> None:
    assert {path.name: lines for path in SOURCES if (lines := len(path.read_text().splitlines())) > 400} == {}
