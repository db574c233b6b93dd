"""What the fault tests share with those of behaviour: sandboxes that a module's tests use."""

from tests.vm.conftest import _module_box, _module_hutch, box, shared

__all__ = ["_module_box", "_module_hutch", "box", "shared"]
