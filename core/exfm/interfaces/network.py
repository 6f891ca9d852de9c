"""Network: the base of components that are networks; it refuses attributes that hide methods of an interface."""

from __future__ import annotations

from typing import Any

from torch import nn

from exfm.interfaces.component import Component


class Network(Component, nn.Module):
    """Base of the interfaces whose components are networks.

    torch stores submodules, parameters and buffers apart from other attributes, and looks them up last: a method or a
    class attribute of the same name hides them. Such an assignment is therefore refused at once.

    Attributes:
        reads_times: whether ``forward`` reads the ages of events.

    Raises:
        TypeError: an attribute has the name of a method, or of an attribute that the interface declares.
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
        """Sets an attribute, unless it would hide a member of the interface or be hidden by it."""
        interface = _method_of(type(self), name)
        # A plain function may replace a method, as a wrapper of forward does; a module is callable and may not.
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
    """Returns whether a network in a module reads the ages of events, itself or through a nested component."""
    return any(child.reads_times for child in module.modules() if isinstance(child, Network))


def _is_interface(cls: type) -> bool:
    """Returns whether a class is an interface of exfm, and not a component."""
    return issubclass(cls, Network) and cls.__module__.startswith(f"{__package__}.")


def _method_of(cls: type, name: str) -> type | None:
    """Finds the interface, or torch's module class, that has a method of this name."""
    for interface in cls.__mro__:
        if (_is_interface(interface) or interface is nn.Module) and callable(vars(interface).get(name)):
            return interface
    return None


def _declared_in(cls: type, name: str) -> type | None:
    """Finds the interface that declares an attribute."""
    for interface in cls.__mro__:
        if _is_interface(interface) and name in interface.__annotations__:
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
