"""What the fault tests share with those of behaviour: homes with templates, and sandboxes that a
module's tests use.
"""

from tests.vm.conftest import _module_box, _module_hutch, box, hutch, shared

__all__ = ["_module_box", "_module_hutch", "box", "hutch", "shared"]
