"""The ops in C++ for CPUs with AVX-512 with bfloat16 and VNNI."""

from .offer import offer

OPS = offer("avx512_bf16")
