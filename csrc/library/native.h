/* native.h: csrc/api.h, which is plain declarations that cffi reads too, once in a file. */
#ifndef LIB_NATIVE_H
#define LIB_NATIVE_H

#include <stddef.h>
#include <stdint.h>

#include "api.h"

#endif
