"""DeepSpeed is named and touched in `gaguide.engine` alone, so that an upgrade concerns one package."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

from tests.support.ranks import REPOSITORY

PACKAGE = REPOSITORY / "gaguide"
ENGINE = PACKAGE / "engine"
FOREIGN = ("deepspeed", "transformers.integrations.deepspeed", "transformers.deepspeed")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(tree(path)))


def others() -> list[Path]:
    """The package's files outside of `gaguide.engine`, and the launch scripts."""
    inside = [path for path in PACKAGE.rglob("*.py") if not path.is_relative_to(ENGINE)]
    return [*inside, *(REPOSITORY / "launch").glob("*.py")]


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, at any depth, under TYPE_CHECKING and by importlib as well."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            yield from (each.value for each in node.args if isinstance(each, ast.Constant))


def _called(node: ast.Call) -> str:
    """The last part of the name of the function that a call names; empty where it names none."""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def test_no_other_package_imports_deepspeed() -> None:
    wrong = [
        f"{path.relative_to(REPOSITORY)} imports {name}"
        for path in others()
        for name in imported(path)
        if any(name == each or name.startswith(f"{each}.") for each in FOREIGN)
    ]
    assert not wrong, "\n".join(wrong)


def defined(path: Path) -> Iterator[str]:
    """Names of functions, classes and attributes that a file defines."""
    for node in nodes(path):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def deepspeed_names() -> set[str]:
    """Attributes of several words that DeepSpeed's engine and optimizers define, and neither torch nor we.

    Of one word are many that others have too, such as `module`.
    """
    spec = find_spec("deepspeed")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent
    places = (
        "engine.py",
        "*optimizer.py",
        "zero/*.py",
        "checkpoint_engine/*.py",
        "swap_tensor/*.py",
        "fp16/*.py",
    )
    files = [path for place in places for path in (folder / "runtime").glob(place)]
    files += (folder / "monitor").glob("*.py")
    theirs = {name for path in files for name in defined(path) if "_" in name.strip("_")}
    ours = {name for path in PACKAGE.rglob("*.py") for name in defined(path) if path.parent != ENGINE}
    public = {name for path in ENGINE.rglob("*.py") for name in class_members(path)}
    layer = torch.nn.Linear(1, 1)
    shared = (torch, torch.Tensor, layer, torch.optim.Optimizer, torch.cuda, torch.distributed, sysconfig)
    return theirs - ours - public - {name for each in shared for name in dir(each)}


def class_members(path: Path) -> Iterator[str]:
    """Public methods and annotated fields of the classes in a file."""
    for node in nodes(path):
        for member in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
                yield member.name
            elif isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
                yield member.target.id


def test_no_other_package_touches_deepspeeds_attributes() -> None:
    names = deepspeed_names()
    assert {"zero_optimization", "ds_tensor", "get_global_grad_norm", "checkpoint_engine"} <= names
    wrong = [
        f"{path.relative_to(REPOSITORY)}:{node.lineno}: {ast.unparse(node)}"
        for path in others()
        for node in nodes(path)
        if isinstance(node, ast.Attribute) and node.attr in names
    ]
    assert not wrong, "\n".join(wrong)


def test_no_public_signature_of_the_engine_says_any() -> None:
    wrong = []
    for path in ENGINE.glob("*.py"):
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                annotations = [each.annotation for each in arguments if each.annotation] + [node.returns]
                if any(
                    isinstance(part, ast.Name) and part.id == "Any"
                    for each in annotations
                    if each is not None
                    for part in ast.walk(each)
                ):
                    wrong.append(f"{path.name}:{node.lineno}: {node.name}")
    assert not wrong, "\n".join(wrong)
