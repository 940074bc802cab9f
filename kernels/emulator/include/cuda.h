// The one type kernels use of the driver's header.
#pragma once
#define __cuda_cuda_h__ 1
#include "../ptx/tensor_map.h"
