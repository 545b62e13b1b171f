/* sizes.h - token-pasted types and register accessors for the handler macros: _8, _16, _32, _64.
 * RD sign-extends, RDU zero-extends, WR follows x86: 32-bit writes clear the upper half. */
#ifndef SOFT_SIZES_H
#define SOFT_SIZES_H

#define RD_8(off)     ((s64)(s8)R8(off))
#define RD_16(off)    ((s64)(s16)R16(off))
#define RD_32(off)    ((s64)(s32)R32(off))
#define RD_64(off)    ((s64)R64(off))
#define RDU_8(off)    ((u64)R8(off))
#define RDU_16(off)   ((u64)R16(off))
#define RDU_32(off)   ((u64)R32(off))
#define RDU_64(off)   ((u64)R64(off))
#define WR_8(off, v)  (R8(off) = (u8)(v))
#define WR_16(off, v) (R16(off) = (u16)(v))
#define WR_32(off, v) (R64(off) = (u32)(v))
#define WR_64(off, v) (R64(off) = (u64)(v))
#define T_8	      m8
#define T_16	      m16
#define T_32	      m32
#define T_64	      m64
#define S_8	      s8
#define S_16	      s16
#define S_32	      s32
#define S_64	      s64
#define SIZES(f) \
	{ \
		f##_8, f##_16, f##_32, f##_64 \
	}
#define FOR4(M)	    M(8) M(16) M(32) M(64)
#define FOR4A(M, a) M(a, 8) M(a, 16) M(a, 32) M(a, 64)

#endif
