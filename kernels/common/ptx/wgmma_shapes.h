// Generated from nbs/08_ptx.ipynb: edit the notebook, not this file.
// Architectures: sm_90a

// The shapes of WGMMA, m64n8 to m64n256, as the macros wgmma.h is made of. An accumulator of N columns is N / 2 registers
// a thread.
#pragma once

// The accumulators of m64nN are operands %0 to %(N/2 - 1). Eight more columns are four more registers.
#define PTX_D8 "%0, %1, %2, %3"
#define PTX_D16 PTX_D8 ", %4, %5, %6, %7"
#define PTX_D24 PTX_D16 ", %8, %9, %10, %11"
#define PTX_D32 PTX_D24 ", %12, %13, %14, %15"
#define PTX_D40 PTX_D32 ", %16, %17, %18, %19"
#define PTX_D48 PTX_D40 ", %20, %21, %22, %23"
#define PTX_D56 PTX_D48 ", %24, %25, %26, %27"
#define PTX_D64 PTX_D56 ", %28, %29, %30, %31"
#define PTX_D72 PTX_D64 ", %32, %33, %34, %35"
#define PTX_D80 PTX_D72 ", %36, %37, %38, %39"
#define PTX_D88 PTX_D80 ", %40, %41, %42, %43"
#define PTX_D96 PTX_D88 ", %44, %45, %46, %47"
#define PTX_D104 PTX_D96 ", %48, %49, %50, %51"
#define PTX_D112 PTX_D104 ", %52, %53, %54, %55"
#define PTX_D120 PTX_D112 ", %56, %57, %58, %59"
#define PTX_D128 PTX_D120 ", %60, %61, %62, %63"
#define PTX_D136 PTX_D128 ", %64, %65, %66, %67"
#define PTX_D144 PTX_D136 ", %68, %69, %70, %71"
#define PTX_D152 PTX_D144 ", %72, %73, %74, %75"
#define PTX_D160 PTX_D152 ", %76, %77, %78, %79"
#define PTX_D168 PTX_D160 ", %80, %81, %82, %83"
#define PTX_D176 PTX_D168 ", %84, %85, %86, %87"
#define PTX_D184 PTX_D176 ", %88, %89, %90, %91"
#define PTX_D192 PTX_D184 ", %92, %93, %94, %95"
#define PTX_D200 PTX_D192 ", %96, %97, %98, %99"
#define PTX_D208 PTX_D200 ", %100, %101, %102, %103"
#define PTX_D216 PTX_D208 ", %104, %105, %106, %107"
#define PTX_D224 PTX_D216 ", %108, %109, %110, %111"
#define PTX_D232 PTX_D224 ", %112, %113, %114, %115"
#define PTX_D240 PTX_D232 ", %116, %117, %118, %119"
#define PTX_D248 PTX_D240 ", %120, %121, %122, %123"
#define PTX_D256 PTX_D248 ", %124, %125, %126, %127"

// The same registers, as operands.
#define PTX_R4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define PTX_R8 PTX_R4(0)
#define PTX_R16 PTX_R8, PTX_R4(4)
#define PTX_R24 PTX_R16, PTX_R4(8)
#define PTX_R32 PTX_R24, PTX_R4(12)
#define PTX_R40 PTX_R32, PTX_R4(16)
#define PTX_R48 PTX_R40, PTX_R4(20)
#define PTX_R56 PTX_R48, PTX_R4(24)
#define PTX_R64 PTX_R56, PTX_R4(28)
#define PTX_R72 PTX_R64, PTX_R4(32)
#define PTX_R80 PTX_R72, PTX_R4(36)
#define PTX_R88 PTX_R80, PTX_R4(40)
#define PTX_R96 PTX_R88, PTX_R4(44)
#define PTX_R104 PTX_R96, PTX_R4(48)
#define PTX_R112 PTX_R104, PTX_R4(52)
#define PTX_R120 PTX_R112, PTX_R4(56)
#define PTX_R128 PTX_R120, PTX_R4(60)
#define PTX_R136 PTX_R128, PTX_R4(64)
#define PTX_R144 PTX_R136, PTX_R4(68)
#define PTX_R152 PTX_R144, PTX_R4(72)
#define PTX_R160 PTX_R152, PTX_R4(76)
#define PTX_R168 PTX_R160, PTX_R4(80)
#define PTX_R176 PTX_R168, PTX_R4(84)
#define PTX_R184 PTX_R176, PTX_R4(88)
#define PTX_R192 PTX_R184, PTX_R4(92)
#define PTX_R200 PTX_R192, PTX_R4(96)
#define PTX_R208 PTX_R200, PTX_R4(100)
#define PTX_R216 PTX_R208, PTX_R4(104)
#define PTX_R224 PTX_R216, PTX_R4(108)
#define PTX_R232 PTX_R224, PTX_R4(112)
#define PTX_R240 PTX_R232, PTX_R4(116)
#define PTX_R248 PTX_R240, PTX_R4(120)
#define PTX_R256 PTX_R248, PTX_R4(124)

// X(N, the numbers of the operands that follow the accumulators) for every N.
#define PTX_EACH_N(X) \
    X(8, %4, %5, %6, %7, %8, %9, %10, %11)                 \
    X(16, %8, %9, %10, %11, %12, %13, %14, %15)            \
    X(24, %12, %13, %14, %15, %16, %17, %18, %19)          \
    X(32, %16, %17, %18, %19, %20, %21, %22, %23)          \
    X(40, %20, %21, %22, %23, %24, %25, %26, %27)          \
    X(48, %24, %25, %26, %27, %28, %29, %30, %31)          \
    X(56, %28, %29, %30, %31, %32, %33, %34, %35)          \
    X(64, %32, %33, %34, %35, %36, %37, %38, %39)          \
    X(72, %36, %37, %38, %39, %40, %41, %42, %43)          \
    X(80, %40, %41, %42, %43, %44, %45, %46, %47)          \
    X(88, %44, %45, %46, %47, %48, %49, %50, %51)          \
    X(96, %48, %49, %50, %51, %52, %53, %54, %55)          \
    X(104, %52, %53, %54, %55, %56, %57, %58, %59)         \
    X(112, %56, %57, %58, %59, %60, %61, %62, %63)         \
    X(120, %60, %61, %62, %63, %64, %65, %66, %67)         \
    X(128, %64, %65, %66, %67, %68, %69, %70, %71)         \
    X(136, %68, %69, %70, %71, %72, %73, %74, %75)         \
    X(144, %72, %73, %74, %75, %76, %77, %78, %79)         \
    X(152, %76, %77, %78, %79, %80, %81, %82, %83)         \
    X(160, %80, %81, %82, %83, %84, %85, %86, %87)         \
    X(168, %84, %85, %86, %87, %88, %89, %90, %91)         \
    X(176, %88, %89, %90, %91, %92, %93, %94, %95)         \
    X(184, %92, %93, %94, %95, %96, %97, %98, %99)         \
    X(192, %96, %97, %98, %99, %100, %101, %102, %103)     \
    X(200, %100, %101, %102, %103, %104, %105, %106, %107) \
    X(208, %104, %105, %106, %107, %108, %109, %110, %111) \
    X(216, %108, %109, %110, %111, %112, %113, %114, %115) \
    X(224, %112, %113, %114, %115, %116, %117, %118, %119) \
    X(232, %116, %117, %118, %119, %120, %121, %122, %123) \
    X(240, %120, %121, %122, %123, %124, %125, %126, %127) \
    X(248, %124, %125, %126, %127, %128, %129, %130, %131) \
    X(256, %128, %129, %130, %131, %132, %133, %134, %135)
