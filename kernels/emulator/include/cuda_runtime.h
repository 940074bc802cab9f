// Everything it declares for device code is there without it.
#pragma once
