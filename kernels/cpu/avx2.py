"""The ops in C++ for CPUs with AVX2 and FMA."""

from .offer import offer

OPS = offer("avx2")
