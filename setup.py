"""What pyproject.toml cannot say: wheels carry the CPU kernels compiled, where there is a compiler.

Such a wheel is for one platform, and for any Python; without a compiler it is for all platforms,
and a machine that has a compiler makes the kernels at the first start.
"""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path
from types import ModuleType

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


def kernel_builder() -> ModuleType:
    """`kernels/cpu/build.py` by its path: its package would import torch."""
    spec = importlib.util.spec_from_file_location("build", ROOT / "kernels/cpu/build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BUILDER = kernel_builder()


def can_compile() -> bool:
    try:
        BUILDER.find_compiler()
    except BUILDER.NotBuilt:
        return False
    return platform.machine() in ("x86_64", "AMD64")


class BuildKernels(build_py):
    """Adds `octavo/kernels/cpu/built/`; an editable install compiles at its first start."""

    def run(self) -> None:
        super().run()
        if can_compile() and not self.editable_mode:
            BUILDER.build_all(Path(self.build_lib, "octavo/kernels/cpu/built"))


class PlatformWheel(bdist_wheel):
    """The kernels know nothing of Python: any version of it may load them."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


class CompiledDistribution(Distribution):
    """Belongs to one platform if it holds what was compiled for it."""

    def has_ext_modules(self) -> bool:
        return can_compile()


setup(
    distclass=CompiledDistribution,
    cmdclass={"build_py": BuildKernels, "bdist_wheel": PlatformWheel},
)
