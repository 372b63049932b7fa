"""Builds fastlstm/_fastlstm_c from all the C files beside this one. setup.py hands it to cffi.

`api.h` is the whole C API in declarations only, so that C and cffi read the same text. Nothing here lists files:
every ``*.c`` here, and every ``*.h`` here and in ``kernels``, belongs to it. The C library in ``library`` has a build of
its own.
"""

from __future__ import annotations

import runpy
import sysconfig
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent  # relative to the repository's root, as setuptools wants it
OLDEST_PYTHON = "0x030A0000"  # one binary for this Python (3.10) and all later ones; the wheel's tag in setup.py agrees

# cffi releases the GIL round every call. With another Python thread busy, getting it back may take that thread's whole
# switch interval: 5 ms for a streaming step of 2 us. cffi has no option for this, so its two macros are replaced:
# functions named flq_* keep the GIL, and all others release it. The comparison is folded away by the compiler. Only for
# work of at most some 50 us. A thread that does one such call after another lets go about once a millisecond (lock.c).
PREAMBLE = """
#include <string.h>
#include "api.h"
#include "lock.h"

#pragma GCC diagnostic ignored "-Wunused-parameter" /* in what cffi generates below */

#undef Py_BEGIN_ALLOW_THREADS
#undef Py_END_ALLOW_THREADS
#define FL_KEEP_GIL (strncmp(__func__, "_cffi_f_flq_", 12) == 0)
#define Py_BEGIN_ALLOW_THREADS { PyThreadState *_save = FL_KEEP_GIL ? NULL : PyEval_SaveThread();
#define Py_END_ALLOW_THREADS if (!FL_KEEP_GIL) PyEval_RestoreThread(_save); else FL_LET_GO_AT_TIMES; }
#ifdef Py_GIL_DISABLED
#define FL_LET_GO_AT_TIMES ((void)0)
#else
#define FL_LET_GO_AT_TIMES do { if (fl_lock_is_due()) let_go(); } while (0)
static __attribute__((noinline)) void let_go(void) {
    PyThreadState *const save = PyEval_SaveThread();
    const fl_lock_paused paused = fl_lock_pause();
    PyEval_RestoreThread(save);
    fl_lock_back(paused);
}
#endif
"""

# Free-threaded Pythons have no stable ABI yet (before 3.15); cffi then builds for the one version.
free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

ffi = FFI()
ffi.cdef((HERE / "api.h").read_text(encoding="utf-8"))
ffi.set_source(
    "fastlstm._fastlstm_c",  # a file name of its own: threadpoolctl and the like go by it
    PREAMBLE,
    sources=sorted(str(path) for path in HERE.glob("*.c")),
    depends=sorted(str(path) for folder in (HERE, HERE / "kernels") for path in folder.glob("*.h")),
    include_dirs=[str(HERE)],
    py_limited_api=not free_threaded,
    define_macros=[] if free_threaded else [("Py_LIMITED_API", OLDEST_PYTHON)],
    extra_compile_args=runpy.run_path(str(HERE / "flags.py"))["FLAGS"],
    extra_link_args=["-pthread"],
)
