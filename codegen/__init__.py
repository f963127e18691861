"""Emitters, builds, measurement and the kernel-package writer."""
