"""Attributes of components that are networks: none may take a name that the interface needs."""

from __future__ import annotations

from typing import Any

from torch import nn

from exfm.interfaces.component import Component


class Network(Component, nn.Module):
    """Base of the interfaces whose components are networks.

    torch keeps submodules, parameters and buffers apart from other attributes, and looks there last: a method or a
    class attribute of the same name hides them. Such an assignment is therefore refused where it is made.

    Attributes:
        reads_times: whether ``forward`` reads the ages of events.

    Raises:
        TypeError: an attribute takes the name of a method, or of what the interface declares.
    """

    reads_times: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in vars(cls):
            interface = _method_of(cls, name)
            if interface is not None and not callable(getattr(cls, name)):
                raise TypeError(
                    f"{cls.__qualname__}.{name} must be a method, as in exfm.{interface.__name__}; "
                    "call the attribute something else"
                )

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute, unless it would hide, or be hidden by, what the interface needs under that name."""
        interface = _method_of(type(self), name)
        if interface is not None and (isinstance(value, nn.Module) or not callable(value)):
            raise TypeError(_taken(self, name, f"a method of {_public(interface)}"))
        if isinstance(value, nn.Module | nn.Parameter):
            declared = _declared_in(type(self), name)
            if declared is not None:
                raise TypeError(_taken(self, name, f"what {_public(declared)} declares as something else"))
            if hasattr(type(self), name):
                raise TypeError(_taken(self, name, f"a class attribute of {type(self).__qualname__}"))
        super().__setattr__(name, value)


def reads_times(module: nn.Module) -> bool:
    """Tells whether a network in a module reads the ages of events, itself or through a nested component."""
    return any(child.reads_times for child in module.modules() if isinstance(child, Network))


def _method_of(cls: type, name: str) -> type | None:
    """The interface, or torch's module class, that has a method of this name."""
    for interface in cls.__mro__:
        is_interface = Network in interface.__bases__ or interface in (Network, nn.Module)
        if is_interface and callable(vars(interface).get(name)):
            return interface
    return None


def _declared_in(cls: type, name: str) -> type | None:
    """The interface that declares an attribute, or sets it in its constructor."""
    for interface in cls.__mro__:
        if Network in interface.__bases__ and name in interface.__annotations__:
            return interface
    return None


def _taken(module: nn.Module, name: str, by: str) -> str:
    return (
        f"{type(module).__qualname__} cannot have an attribute {name!r}: that is {by}, and of two with one name Python "
        f"finds one. Call it something else, such as self.{_other_name(name)}"
    )


def _other_name(name: str) -> str:
    return {"blocks": "layers"}.get(name, f"my_{name}")


def _public(interface: type) -> str:
    return f"torch.nn.{interface.__name__}" if interface is nn.Module else f"exfm.{interface.__name__}"
