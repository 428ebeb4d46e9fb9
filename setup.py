"""Build the optional C++ extension with CMake and Ninja; pyproject.toml holds everything else.

Without a compiler or CMake the installation goes through, says so in one line, and the package uses PyTorch.
SCOREFUSION_NO_EXTENSION=1 skips the extension on purpose; SCOREFUSION_REQUIRE_EXTENSION=1 makes its failure
an error, for building wheels.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Run CMake for the extension, or go on without it."""

    def run(self) -> None:
        """Build, reporting a failure in one line unless the extension is required."""
        if os.environ.get("SCOREFUSION_NO_EXTENSION") == "1":
            self._skip("SCOREFUSION_NO_EXTENSION is set")
            return
        try:
            self.build_with_cmake()
        except Exception as error:
            if os.environ.get("SCOREFUSION_REQUIRE_EXTENSION") == "1":
                raise
            self._skip(_reason(error))

    def build_with_cmake(self) -> None:
        """Configure and build into the folder setuptools collects from."""
        import pybind11

        cmake = shutil.which("cmake")
        if cmake is None:
            raise RuntimeError("cmake not found")
        target = Path(self.get_ext_fullpath(self.extensions[0].name)).resolve().parent
        build = (
            Path(self.build_temp).resolve()
            / f"cmake-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        )
        build.mkdir(parents=True, exist_ok=True)
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        configure = [
            cmake,
            "-S",
            str(ROOT),
            "-B",
            str(build),
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY_RELEASE={target}",
        ]
        ninja = shutil.which("ninja")
        if ninja is not None:
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        for command in (configure, [cmake, "--build", str(build), "--config", "Release"]):
            subprocess.run(command, check=True, capture_output=True, text=True)

    def get_outputs(self) -> list[str]:
        """Return what was built, which may be nothing."""
        return [path for path in super().get_outputs() if Path(path).exists()]

    def _skip(self, reason: str) -> None:
        self.extensions[0].optional = True
        print(
            f"scorefusion: C++ extension not built ({reason}); PyTorch will be used instead", file=sys.stderr
        )


def _reason(error: Exception) -> str:
    """Return the line that says most about a failed build."""
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line.strip() for line in f"{error.stderr}\n{error.stdout}".splitlines()]
        lines = [line for line in lines if line and not line.startswith("CMake Error")]
        for place, line in enumerate(lines):
            if any(sign in line.lower() for sign in ("error:", "not find", "no cmake_")):
                return " ".join(lines[place : place + 2]) if line.endswith(":") else line
        return lines[0] if lines else str(error)
    return str(error) or type(error).__name__


folders = {".".join(file.parent.relative_to(ROOT).parts) for file in ROOT.glob("scorefusion/**/*.py")}

setup(
    packages=[*sorted(folders), "scorefusion.kernels"],
    package_dir={"scorefusion.kernels": "kernels"},
    package_data={"scorefusion": ["py.typed", "assets/**/*"]},
    ext_modules=[Extension("scorefusion._C", sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
