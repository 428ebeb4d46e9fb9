"""Build the optional C++ and CUDA extensions with CMake and Ninja; pyproject.toml holds everything else.

Without a compiler or CMake the installation goes through, says so in one line, and the package uses PyTorch.
SCOREFUSION_NO_EXTENSION=1 skips the extensions on purpose; SCOREFUSION_REQUIRE_EXTENSION=1 makes a failure of
the C++ one an error, for building wheels. The CUDA one is built where nvcc is; SCOREFUSION_CUDA=OFF skips it,
SCOREFUSION_CUDA=ON makes its failure an error.
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
INSTEAD = {
    "C++": "PyTorch will be used instead",
    "CUDA": "Triton or PyTorch will be used instead",
}


class CMakeBuild(build_ext):
    """Run CMake for each extension, or go on without it."""

    def run(self) -> None:
        """Build, reporting a failure in one line unless the extension is required."""
        cpp, cuda = self.extensions
        if os.environ.get("SCOREFUSION_NO_EXTENSION") == "1":
            self._skip(cpp, "C++", "SCOREFUSION_NO_EXTENSION is set")
            self._skip(cuda, "CUDA", "SCOREFUSION_NO_EXTENSION is set")
            return
        required = os.environ.get("SCOREFUSION_REQUIRE_EXTENSION") == "1"
        self._try(cpp, "C++", required, "-DSCOREFUSION_CUDA=OFF")
        wanted = os.environ.get("SCOREFUSION_CUDA", "AUTO").upper()
        if wanted == "OFF":
            self._skip(cuda, "CUDA", "SCOREFUSION_CUDA is OFF")
        elif wanted == "AUTO" and not (shutil.which("nvcc") or os.environ.get("CUDACXX")):
            self._skip(cuda, "CUDA", "there is no nvcc")
        else:
            self._try(cuda, "CUDA", wanted == "ON", "-DSCOREFUSION_CUDA=ON")

    def build_with_cmake(self, extension: Extension, option: str) -> None:
        """Configure and build one extension into the folder setuptools collects from."""
        import pybind11

        cmake = shutil.which("cmake")
        if cmake is None:
            raise RuntimeError("cmake not found")
        module = extension.name.rpartition(".")[2]
        target = Path(self.get_ext_fullpath(extension.name)).resolve().parent
        build = (
            Path(self.build_temp).resolve()
            / f"cmake-{sysconfig.get_platform()}-{sys.implementation.cache_tag}{module}"
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
            option,
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY_RELEASE={target}",
        ]
        ninja = shutil.which("ninja")
        if ninja is not None:
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        for command in (configure, [cmake, "--build", str(build), "--target", module, "--config", "Release"]):
            subprocess.run(command, check=True, capture_output=True, text=True)

    def get_outputs(self) -> list[str]:
        """Return what was built, which may be nothing."""
        return [path for path in super().get_outputs() if Path(path).exists()]

    def _try(self, extension: Extension, kind: str, required: bool, option: str) -> None:
        try:
            self.build_with_cmake(extension, option)
        except Exception as error:
            if required:
                raise
            self._skip(extension, kind, _reason(error))

    def _skip(self, extension: Extension, kind: str, reason: str) -> None:
        extension.optional = True
        print(f"scorefusion: {kind} extension not built ({reason}); {INSTEAD[kind]}", file=sys.stderr)


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
    package_data={"scorefusion": ["py.typed", "assets/**/*", "io/pages/*.*", "embed/monai_bundle/*"]},
    ext_modules=[
        Extension(name, sources=[], optional=True) for name in ("scorefusion._C", "scorefusion._cuda")
    ],
    cmdclass={"build_ext": CMakeBuild},
)
