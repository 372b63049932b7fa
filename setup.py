"""What pyproject.toml cannot say: the C extension, which may fail to build, and the wheel's tag."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, ExecError


class BuildOrExplain(build_ext):
    """Builds the extension or, where that fails, says why and goes on: the other backends need no compiler.

    The reason is left in the package, in ``_build_failed.txt``, where ``fastlstm.backends()`` finds it.
    With FASTLSTM_REQUIRE_C=1 in the environment (this repository's Makefile sets it) a failure is an error.
    """

    def build_extension(self, ext: Extension) -> None:
        built = Path(self.get_ext_fullpath(ext.name))  # in the build folder, or in the source tree if editable
        reason = built.with_name("_build_failed.txt")
        reason.unlink(missing_ok=True)
        self._said = ""
        self.compiler.spawn = self._spawn
        try:
            super().build_extension(ext)
        except (BaseError, OSError) as error:
            if os.environ.get("FASTLSTM_REQUIRE_C") == "1":
                raise
            text = "\n".join([*self._said.strip().splitlines()[-10:], str(error)])
            built.unlink(missing_ok=True)  # an older one would no longer be what the sources say
            reason.parent.mkdir(parents=True, exist_ok=True)
            reason.write_text(text + "\n", encoding="utf-8")
            ext.optional = True  # so that nobody looks for the file later
            print(
                f"\n{text}\n\nWARNING: fastlstm's C backend could not be built (the reason is above). The installation "
                "goes on without it; the\nother backends work, but more slowly. To get it: install a C compiler (Debian, "
                "Ubuntu: apt install gcc python3-dev;\nmacOS: xcode-select --install) and install fastlstm again.\n",
                file=sys.stderr,
            )

    def _spawn(self, command: list[str], **_: object) -> None:
        """Run a compiler's command, and keep what it says."""
        print(" ".join(command))
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        print(done.stdout, end="")
        if done.returncode:
            self._said = done.stdout
            raise ExecError(f"the command {command[0]!r} failed with exit code {done.returncode}")


class StableAbiWheel(bdist_wheel):
    """Tags the wheel for what it is: one binary for CPython 3.10 and later, unless free-threaded."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        if python.startswith("cp") and not sysconfig.get_config_var("Py_GIL_DISABLED"):
            return "cp310", "abi3", platform
        return python, abi, platform


setup(cffi_modules=["csrc/build.py:ffi"], cmdclass={"build_ext": BuildOrExplain, "bdist_wheel": StableAbiWheel})
