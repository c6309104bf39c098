"""pykernels/_C.pyi against the module as built: every name, parameter and default."""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pykernels
from pykernels import _C

STUBS = ast.parse((Path(pykernels.__file__).parent / "_C.pyi").read_text())
Parameter = tuple[str, str, str]  # name, "positional" or "keyword", default ("" for none)


def stub_members(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    members: dict[str, ast.stmt] = {}
    for statement in body:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            is_public = statement.name == "__init__" or not statement.name.startswith("_")
            if is_public:
                members[statement.name] = statement
    return members


def built_members(owner: object) -> dict[str, Any]:
    inherited = (
        {name for base in type.mro(owner)[1:] for name in vars(base)}
        if isinstance(owner, type)
        else set()
    )
    return {
        name: getattr(owner, name)
        for name in vars(owner)
        if not name.startswith("_") and name not in inherited
    }


def is_property(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.FunctionDef) and any(
        isinstance(decorator, ast.Name) and decorator.id == "property"
        for decorator in statement.decorator_list
    )


def parameters(function: ast.FunctionDef) -> list[Parameter]:
    arguments = function.args
    positional = arguments.posonlyargs + arguments.args
    defaults = [""] * (len(positional) - len(arguments.defaults))
    defaults += [ast.unparse(default) for default in arguments.defaults]
    found = [
        (argument.arg, "positional", default)
        for argument, default in zip(positional, defaults, strict=True)
        if argument.arg != "self"
    ]
    for argument, keyword_default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        default = "" if keyword_default is None else ast.unparse(keyword_default)
        found.append((argument.arg, "keyword", default))
    return found


def built_function(documented: Any) -> ast.FunctionDef:
    """pybind11 writes the signature as Python in the first line of the docstring."""
    signature = documented.__doc__.splitlines()[0]
    statement = ast.parse(f"def {signature}: ...").body[0]
    assert isinstance(statement, ast.FunctionDef)
    return statement


def differences(path: str, stub: ast.stmt, built: Any) -> list[str]:
    if isinstance(stub, ast.ClassDef) != isinstance(built, (type, ModuleType)):
        return [f"{path}: a class or module in one of them only"]
    if isinstance(stub, ast.ClassDef):
        found = compare(path, stub.body, built)
        initialiser = stub_members(stub.body).get("__init__")
        if initialiser is not None:
            found += differences(f"{path}.__init__", initialiser, built.__init__)
        return found
    assert isinstance(stub, ast.FunctionDef)
    if is_property(stub) or isinstance(built, property):
        same = is_property(stub) and isinstance(built, property)
        return [] if same else [f"{path}: a property in one of them only"]
    expected, actual = parameters(stub), parameters(built_function(built))
    return [] if expected == actual else [f"{path}: stub has {expected}, module has {actual}"]


def compare(path: str, body: list[ast.stmt], built: object) -> list[str]:
    stubs = stub_members(body)
    stubs.pop("__init__", None)
    members = built_members(built)
    found = [f"{path}.{name}: only in the module" for name in sorted(members.keys() - stubs)]
    found += [f"{path}.{name}: only in the stubs" for name in sorted(stubs.keys() - members)]
    for name in sorted(stubs.keys() & members.keys()):
        found += differences(f"{path}.{name}", stubs[name], members[name])
    return found


def test_stubs_match_the_module() -> None:
    assert compare("_C", STUBS.body, _C) == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(a: int) -> None: ...", "m.f: stub has"),
        ("def g() -> None: ...", "m.g: only in the stubs"),
        ("class f: ...", "m.f: a class or module in one of them only"),
    ],
)
def test_differences_are_found(source: str, message: str) -> None:
    def function() -> None:
        """f(b: int) -> None"""

    module = ModuleType("m")
    vars(module)["f"] = function
    found = compare("m", ast.parse(source).body, module)
    assert any(message in line for line in found)
