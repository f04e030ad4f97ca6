"""The ops in C++ for CPUs with AVX-512."""

from .offer import offer

OPS = offer("avx512")
