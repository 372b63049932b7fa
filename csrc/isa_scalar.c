/* isa_scalar.c: plain C, for processors without another instruction set here, and the measure of the others. */
#include "internal.h"

#define ISA scalar
#define VL 1
#define ROWS 3
#define GRAD_ROWS 4
#include "kernels/kernels.h"
