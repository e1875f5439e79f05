"""One operator of a traced forward pass."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

ROOT = "module."
"""What stands before the path of every module and parameter of a traced network."""


@dataclass(frozen=True)
class Operation:
    """One call of an ATen operator.

    Attributes:
        name: the operator, such as `conv2d`.
        layer: the path of the module that called it, "" for the network itself.
        arguments: every argument of the operator's schema by name, with the
            defaults filled in.
        output: what it returned.
        wanted: the arguments whose cotangents are asked for.
    """

    name: str
    layer: str
    arguments: Mapping[str, Any]
    output: Any
    wanted: Collection[str] = ()

    def __getitem__(self, argument: str) -> Any:
        """Return the argument of this name."""
        return self.arguments[argument]

    def __str__(self) -> str:
        """Return the operator and where it stands, for error messages."""
        return f"{self.name} in {self.layer or 'the network itself'}"


def operator_name(node: fx.Node) -> str:
    """Return the name of the operator that a node calls, without namespace and overload."""
    schema = getattr(node.target, "_schema", None)
    name = schema.name if schema else getattr(node.target, "__name__", str(node.target))
    return str(name).rpartition("::")[2]


def layer_of(node: fx.Node) -> str:
    """Return the path of the module whose code called the node's operator."""
    return [*layers_around(node), ""][0]


def layers_around(node: fx.Node) -> list[str]:
    """Return the paths of the modules that a node's operator ran in, the innermost first.

    Without the network itself.
    """
    stack = node.meta.get("nn_module_stack") or {}
    paths = (f"{path}.".removeprefix(ROOT).removesuffix(".") for path, *_ in stack.values())
    return [path for path in paths if path][::-1]


def bind(node: fx.Node) -> dict[str, Any]:
    """Return the node's arguments by the names of its operator's schema."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {str(index): value for index, value in enumerate(node.args)}
    bound = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    bound |= dict(zip((a.name for a in schema.arguments), node.args, strict=False))
    return bound | node.kwargs
