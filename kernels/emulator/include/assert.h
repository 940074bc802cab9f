// assert() of a kernel: an error of the launch instead of the end of the process. No include guard, as for the original.
#undef assert
#ifdef NDEBUG
#define assert(condition) ((void)0)
#else
#define assert(condition) ((condition) ? (void)0 : emu::assertion_failed(#condition))
#endif
