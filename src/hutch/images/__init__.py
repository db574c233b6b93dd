"""OCI images, the root file systems built from them, kernels and initramfs."""
