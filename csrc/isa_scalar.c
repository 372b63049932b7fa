/* isa_scalar.c: plain C, for machines that no other file serves, and as the yardstick of the others. */
#include "internal.h"

#define ISA scalar
#define VL 1
#define ROWS 3
#define GRAD_ROWS 4
#include "kernels.h"
