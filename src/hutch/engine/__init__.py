"""What runs the VM: QEMU, and an in-memory fake behind the same Protocol."""
