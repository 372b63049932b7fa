"""What pyproject.toml cannot say: the C extension and the C library, which may fail to build, and the wheel's tag."""

from __future__ import annotations

import os
import runpy
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError


class BuildOrExplain(build_ext):
    """Builds the extension or, where that fails, says why and goes on: the other backends need no compiler.

    The reason is left in the package, in ``_build_failed.txt``, where ``fastlstm.backends()`` finds it. Likewise the C
    library, in ``clib``, whose reason is in ``clib/not_built.txt``. With FASTLSTM_REQUIRE_C=1 in the environment (this
    repository's Makefile sets it) a failure is an error.
    """

    reason = ""

    def run(self) -> None:
        super().run()
        package = Path("fastlstm") if self.inplace else Path(self.build_lib, "fastlstm")
        note = package / "_build_failed.txt"
        note.unlink(missing_ok=True)
        if self.reason:
            for older in package.glob("_fastlstm_c.*.so"):
                older.unlink()  # it is not what the sources say now
            package.mkdir(parents=True, exist_ok=True)
            note.write_text(self.reason + "\n", encoding="utf-8")
        self.build_library(package / "clib")

    def build_library(self, prefix: Path) -> None:
        """Build the C library into the package, or leave a note of why not."""
        library = runpy.run_path("csrc/library/build.py")
        note = prefix / "not_built.txt"
        note.unlink(missing_ok=True)
        try:
            work = Path("build" if self.inplace else self.build_temp, "library")  # kept, where sources stay
            library["install"](prefix, work)
        except (library["BuildError"], OSError) as error:
            if library["problem"]() is None and os.environ.get("FASTLSTM_REQUIRE_C") == "1":
                raise
            shutil.rmtree(prefix / "lib", ignore_errors=True)  # it is not what the sources say now
            prefix.mkdir(parents=True, exist_ok=True)
            note.write_text(f"{error}\n", encoding="utf-8")
            print(f"\nWARNING: fastlstm's C library could not be built: {error}\n", file=sys.stderr)

    def build_extension(self, ext: Extension) -> None:
        said: list[str] = []
        try:
            with kept_stderr(said):
                super().build_extension(ext)
        except (BaseError, CCompilerError, OSError) as error:
            if os.environ.get("FASTLSTM_REQUIRE_C") == "1":
                print("\nFASTLSTM_REQUIRE_C=0 would install the other backends without this one.\n", file=sys.stderr)
                raise
            self.reason = "\n".join("".join(said).strip().splitlines()[-10:]) or str(error)
            ext.optional = True  # setuptools then does not look for the extension's file later
            print(
                f"\nWARNING: fastlstm's C backend could not be built: {self.reason.splitlines()[-1]}\n"
                "The installation goes on without it: the other backends work, but more slowly. To get it, install a\n"
                "C compiler (Debian, Ubuntu: apt install gcc python3-dev; macOS: xcode-select --install) and then\n"
                "install fastlstm again.\n",
                file=sys.stderr,
            )


@contextmanager
def kept_stderr(said: list[str]) -> Iterator[None]:
    """Append to `said` what this process and the compilers that it starts write to standard error, and show it."""
    sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(shown, 2)
            os.close(shown)
            file.seek(0)
            said.append(file.read().decode(errors="replace"))
            sys.stderr.write(said[-1])


class StableAbiWheel(bdist_wheel):
    """Tags the wheel for what it is: one binary for CPython 3.10 and later, unless free-threaded."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        if python.startswith("cp") and not sysconfig.get_config_var("Py_GIL_DISABLED"):
            return "cp310", "abi3", platform
        return python, abi, platform


setup(cffi_modules=["csrc/build.py:ffi"], cmdclass={"build_ext": BuildOrExplain, "bdist_wheel": StableAbiWheel})
