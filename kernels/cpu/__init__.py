"""Ops in C++ for x86 CPUs: one module of ops per instruction set, compiled from the same `csrc/`.

`csrc/*.cpp` export plain C functions; `library.py` loads what `build.py` compiled; a file here
makes an op of a C function; `offer.py` lists them.
"""
