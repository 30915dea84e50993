"""Kernels in C++ with a C interface, and their Python sides. Optional: every core also runs without them."""
