/* The backends that device_open chooses from. Inside kernels/ (and the guarded test device) only. */
#pragma once

#include "device.h"

extern const struct device_backend device_backend_cpu;
extern const struct device_backend device_backend_cuda;
extern const struct device_backend device_backend_guarded;
