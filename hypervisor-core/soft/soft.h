/* soft.h - the software CPU's inside: vCPU, software TLB, pre-decoded operations, code pages.
 *
 * Layers, upper uses lower: run (loop, interrupts) > block (code cache) > trans/decode > op_*.c
 * (the dispatch tier) > seg, exc, msr, sys > mmu. A JIT replaces trans and op_*.c only.
 *
 * Threading: a struct cpu belongs to its vCPU's thread. Other threads touch `attn`, `asyncs` and
 * the inbox of code invalidations (soft_code_*). Block caches are per vCPU, so decoding takes no
 * lock.
 * Faults unwind by longjmp to the run loop: no handler holds a lock or memory over a guest access.
 * Trust: everything the guest can make is input: no assertion may depend on it.
 * Spec: Intel SDM and AMD APM; flags, error codes and orders follow the SDM where they differ.
 */
#ifndef SOFT_SOFT_H
#define SOFT_SOFT_H

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "hypervisor-core/vm.h"
#include "hypervisor-core/x86_state.h"

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;
/* guest memory and register slots are read at every width */
typedef u8 __attribute__((may_alias)) m8;
typedef u16 __attribute__((may_alias, aligned(1))) m16;
typedef u32 __attribute__((may_alias, aligned(1))) m32;
typedef u64 __attribute__((may_alias, aligned(1))) m64;

#define likely(x)   __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define COLD	    __attribute__((noinline, cold))

/* Handlers end in a tail call of the next one. Without optimisation, or under sanitizers, they
 * return it instead and a loop calls it: same semantics, no growth of the stack. */
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
    __has_feature(memory_sanitizer)
#define SOFT_NO_TAIL 1
#endif
#endif
#if !defined(__OPTIMIZE__) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SOFT_NO_TAIL 1
#endif
#if defined(__clang__)
#define MUSTTAIL __attribute__((musttail))
#else
#define MUSTTAIL
#endif

struct cpu;
struct op;
typedef const struct op *op_fn(struct cpu *c, const struct op *o);

/* One pre-decoded operation. r0, r1, base, index are byte offsets of register slots in struct cpu
 * (8-bit high registers point one byte further). Effective address = base + (index << scale) +
 * disp. */
struct op {
	op_fn *fn;
	union {
		u64 imm;
		const struct op *tgt; /* direct jump inside the page: first op of its block */
		const void *ptr;
	};
	s32 disp; /* memory displacement, or a jump's target relative to the block's start */
	u8 r0, r1, base, index;
	u8 scale;
	u8 ord;	 /* guest instructions of the block before this one */
	u8 len;	 /* of the guest instruction */
	u8 x;	 /* handler's own */
	u16 off; /* of the guest instruction from the block's start */
	u16 y;	 /* handler's own */
};

#ifdef SOFT_NO_TAIL
#define DISPATCH(next) return (next)
#define TAIL(fn)       MUSTTAIL return fn(c, o)
#else
#define DISPATCH(next) \
	do { \
		const struct op *o_ = (next); \
		MUSTTAIL return o_->fn(c, o_); \
	} while (0)
#define TAIL(fn) MUSTTAIL return fn(c, o)
#endif
#define NEXT DISPATCH(o + 1)

enum { /* register slots after the 16 general ones */
       S_ZERO = 16,
       S_TMP, /* linear address made by an address micro-op */
       S_RIP, /* guest rip of the running block's start; the guest's rip outside of blocks */
       S_SEG, /* six segment bases, in X86_* order */
       S_COUNT = 25,
};
#define SLOT(n)	    ((u8)((n)*8))
#define R64(off)    (*(m64 *)((u8 *)c + (off)))
#define R32(off)    (*(m32 *)((u8 *)c + (off)))
#define R16(off)    (*(m16 *)((u8 *)c + (off)))
#define R8(off)	    (*(m8 *)((u8 *)c + (off)))
#define RIP	    (c->r[S_RIP])
#define NEXT_OFF(o) ((o)->off + (o)->len)

/* Lazy arithmetic flags: operands and result sign-extended to 64 bits; ZF is always fl_r == 0. */
enum fl_type {
	FL_ADD,	  /* and adc */
	FL_SUB,	  /* and sbb, cmp, neg */
	FL_LOGIC, /* CF = OF = AF = 0 */
	FL_X,	  /* fl_a: CF, AF, OF in their eflags places; ZF, SF, PF by fl_r */
	FL_ALL,	  /* fl_a: all six; fl_r = !ZF */
};
#define EFL_CF	  0x1u
#define EFL_PF	  0x4u
#define EFL_AF	  0x10u
#define EFL_ZF	  0x40u
#define EFL_SF	  0x80u
#define EFL_TF	  0x100u
#define EFL_IF	  0x200u
#define EFL_DF	  0x400u
#define EFL_OF	  0x800u
#define EFL_IOPL  0x3000u
#define EFL_NT	  0x4000u
#define EFL_RF	  0x10000u
#define EFL_VM	  0x20000u
#define EFL_AC	  0x40000u
#define EFL_ID	  0x200000u
#define EFL_ARITH (EFL_CF | EFL_PF | EFL_AF | EFL_ZF | EFL_SF | EFL_OF)
#define EFL_ALL_BITS \
	(EFL_ARITH | EFL_TF | EFL_IF | EFL_DF | EFL_IOPL | EFL_NT | EFL_RF | EFL_AC | EFL_ID)

/* Software TLB. A tag is page address | epoch (bits 0-10); bit 11 set: valid, but only by the slow
 * path. */
#define TLB_BITS      12
#define TLB_SIZE      (1u << TLB_BITS)
#define TLB_SLOW      0x800u
#define TLB_EPOCH_MAX 0x7ffu
#define PAGE_BITS     12
#define PAGE_OFF      0xfffULL

struct tlbe {
	u64 rtag, wtag;
	u64 addend; /* host = guest + addend */
	u64 gpaf;   /* gpa page | TF_* */
};
enum { TF_X = 1, TF_W = 2, TF_MMIO = 4, TF_ROM = 8, TF_GLOBAL = 16, TF_LARGE = 32 };

enum tlb_idx { TLB_KERN, TLB_USER, TLB_KERN_AC, TLB_NIDX };
enum { ACC_R = 0, ACC_W = 2, ACC_X = 16 };

struct tlb {
	struct tlbe *e;
	u64 epoch;
	u64 large[16]; /* filter by address bits 21..30 of what large pages are in */
	bool huge;     /* a 1 GiB page is in */
	bool nonglobal_lost;
	unsigned nnonglobal;
	u16 nonglobal[64]; /* kernel entries that a CR3 write must drop */
};

/* Jump cache: where a virtual rip's block is. */
#define JC_BITS 12
struct jce {
	u64 rip, ctx;
	const struct op *ops;
	u64 pad;
};

#define ATTN_KICK  1u /* requests, interrupts, inbox: see run.c */
#define ATTN_INTR  2u
#define ATTN_NMI   4u
#define ATTN_CODE  8u  /* inbox of code invalidations */
#define ATTN_FLUSH 16u /* flush the TLB and acknowledge (dirty log) */
#define ATTN_INIT  32u
#define ATTN_SIPI  64u
#define ATTN_LIMIT 128u /* icount budget used up */
#define ATTN_STOP  256u /* unrecoverable: leave vcpu_run */

#define EXC_DE	0
#define EXC_DB	1
#define EXC_NMI 2
#define EXC_BP	3
#define EXC_OF	4
#define EXC_BR	5
#define EXC_UD	6
#define EXC_NM	7
#define EXC_DF	8
#define EXC_TS	10
#define EXC_NP	11
#define EXC_SS	12
#define EXC_GP	13
#define EXC_PF	14
#define EXC_MF	16
#define EXC_AC	17
#define EXC_XM	19

/* reasons given to longjmp */
enum { JMP_EXC = 1, JMP_RESTART_SINGLE, JMP_LEAVE };

enum { MODE_16, MODE_32, MODE_64 };

/* FXSAVE image (SDM vol. 1, 10.5.1); xmm and x87 live here. */
struct fximg {
	u16 fcw, fsw;
	u8 ftw, rsv;
	u16 fop;
	u64 fip, fdp;
	u32 mxcsr, mxcsr_mask;
	struct {
		u64 man;
		u16 exp;
		u16 pad[3];
	} st[8];
	u8 xmm[16][16];
	u8 pad[96];
} __attribute__((aligned(16)));

struct block;
struct cpage;
#define CPAGE_HASH 2048u

struct soft_vm;

struct cpu {
	u64 r[S_COUNT]; /* must be first */
	u64 jctx;	/* code epoch, privilege, mode: what a jump cache entry must match */
	struct jce *jc;
	_Atomic u32 attn;
	u32 fl_type;
	s64 fl_r, fl_a, fl_b;
	struct tlbe *tlb; /* of the current index */
	u64 epoch;
	u64 icount;
	u32 eflags; /* all but the arithmetic flags */
	u8 cpl, mode, fp_ok, single;
	u8 irq_wait; /* an interrupt waits for IF */
	u8 inhibit;  /* one instruction runs before the next interrupt */
	u8 halted, sse_off;
	u8 mxcsr_unmasked;
	u8 stack32; /* SS.B */

	struct fximg fx;
	struct x86_seg seg[X86_NSEGS];
	u64 gdt_base, idt_base;
	u16 gdt_limit, idt_limit;
	u64 cr0, cr2, cr3, cr4, efer;
	u64 dr[4], dr6, dr7;
	bool dbg_armed, dbg_data; /* a breakpoint is armed; one of data (debug.c) */
	u8 dbg_hit;		  /* data breakpoints that the running instruction met */
	u8 cr8;
	u64 star, lstar, cstar, fmask, kernel_gs, tsc_aux, tsc_adjust, tsc_offset;
	u64 pat, mtrr_def, sysenter[3], misc_enable, mcg_status;
	u64 mtrr_fix[11], mtrr_var[16];
	u64 pv_system, pv_wall, pv_poll;
	u64 apic_base;
	u64 reserved_pa; /* physical address bits that must be 0 */

	enum tlb_idx idx;
	struct tlb tlbs[TLB_NIDX];
	u64 code_epoch[2]; /* kernel, user */
	u64 next_code_epoch;
	bool kern_code_nonglobal;
	u16 *wslot; /* a guest page: tlb index + 1 of its fast write entry, 0xffff = several */

	/* exception in the making */
	const struct op *fault_op;
	u8 exc_nr, exc_has_err, exc_nested;
	u32 exc_err;
	u64 exc_cr2;
	u64 exc_dr6;
	jmp_buf *env;
	bool nmi_pending, nmi_masked;
	bool rmw_bounced, rmw_locked;
	u64 rmw_va;
	u32 rmw_size;
	u8 bounce[64] __attribute__((aligned(64)));
	/* event taken over with a state: 1 interrupt 2 NMI 3 exception 4 with error code */
	u8 pending_kind;
	u8 pending_event;
	u32 pending_err;

	/* code cache */
	u8 *arena;
	size_t arena_size, arena_used;
	u32 arena_gen;
	struct cpage *pages[CPAGE_HASH];
	struct op scratch[80];
	u64 idle_since_ns, idle_icount; /* see soft_code_idle() */
	struct cpuid_table cpuid;

	/* inbox of page numbers whose blocks must go */
	pthread_mutex_t inbox_lock;
	u64 inbox[64];
	unsigned inbox_n;
	bool inbox_all;

	/* sleeping and state requests */
	pthread_mutex_t lock;
	pthread_cond_t wake;
	bool in_guest;
	u64 flush_asked, flush_done;
	enum x86_mp_state mp;
	u8 sipi_vector;
	u64 icount_limit, icount_base;
	u64 single_limit; /* icount_limit while one instruction runs alone */
#define SOFT_ICOUNT_NS 4  /* virtual ns an instruction */

	struct vm *vm;
	struct vcpu *v;
	struct soft_vm *sv;
	unsigned index;
	bool shutdown;
	u64 n_blocks, n_flush, n_tlbmiss, n_exc, n_irq, n_inval, n_mmio, n_pio, n_codewr;
};

/* What all vCPUs of a VM share. */
struct soft_vm {
	struct vm *vm;
	bool icount;
	u64 npages;		 /* one past the highest RAM or ROM page */
	_Atomic u64 *code_lines; /* a word a page: bit = 64-byte line holds decoded code */
	_Atomic u64 *dirty;	 /* a bit a page while dirty logging; or NULL */
	size_t dirty_words;
	pthread_mutex_t split_lock;
	_Atomic unsigned ncpus;
	struct cpu *cpus[VM_VCPUS_MAX];
	u64 clock_offset; /* guest clock = host monotonic + offset */
	_Atomic u64 icount_ns;
	unsigned turn; /* run_all: whose turn */
};

/* ---- flags (flags.h inlines the rest) */
u32 soft_eflags(const struct cpu *c);
void soft_eflags_set(struct cpu *c, u32 val); /* all bits, no privilege check, no mode change */

/* ---- exc.c: raise unwinds to the run loop; the op gives the instruction that faulted */
_Noreturn void soft_raise(struct cpu *c, const struct op *o, unsigned nr);
_Noreturn void soft_raise_err(struct cpu *c, const struct op *o, unsigned nr, u32 err);
int soft_vcpu_get_state(struct vcpu *v, struct x86_state *s, struct err *e);
int soft_vcpu_set_state(struct vcpu *v, const struct x86_state *s, struct err *e);
_Noreturn void soft_leave(struct cpu *c, int why);
void soft_deliver_exception(struct cpu *c); /* c->exc_*; RIP is the faulting instruction */
void soft_interrupt(struct cpu *c, unsigned vector, bool soft, u64 next_rip, bool has_err, u32 err);
void soft_fix_rip(struct cpu *c); /* after an unwinding: RIP, icount from fault_op */
void soft_iret(struct cpu *c, const struct op *o, unsigned osz);

/* ---- mmu.c */
int soft_mmu_init(struct cpu *c);
void soft_mmu_fini(struct cpu *c);
void soft_mmu_trim(struct cpu *c);
void soft_mmu_select(struct cpu *c); /* tlb, epoch for cpl and AC */
void soft_tlb_flush(struct cpu *c, bool global);
void soft_tlb_invlpg(struct cpu *c, u64 va);
struct tlbe *soft_tlb_get(struct cpu *c, const struct op *o, u64 va, unsigned acc,
			  enum tlb_idx idx);
bool soft_mmu_probe(struct cpu *c, u64 va, u64 *gpa); /* no faults, no A/D */
u64 soft_ld(struct cpu *c, const struct op *o, u64 va, unsigned size);
void soft_st(struct cpu *c, const struct op *o, u64 va, unsigned size, u64 val);
void soft_ld_buf(struct cpu *c, const struct op *o, u64 va, void *buf, unsigned size);
void soft_st_buf(struct cpu *c, const struct op *o, u64 va, const void *buf, unsigned size);
u64 soft_ld_sys(struct cpu *c, const struct op *o, u64 va, unsigned size); /* supervisor */
void soft_st_sys(struct cpu *c, const struct op *o, u64 va, unsigned size, u64 val);
void soft_probe_w(struct cpu *c, const struct op *o, u64 va, unsigned size);
/* read-modify-write: a host pointer to @size bytes, or a bounce buffer that soft_rmw_end() stores
 */
void *soft_rmw(struct cpu *c, const struct op *o, u64 va, unsigned size);
void soft_rmw_end(struct cpu *c, const struct op *o);
/* contiguous host memory at va for @acc, up to a page's end; NULL where the slow path must be taken
 */
u8 *soft_span(struct cpu *c, const struct op *o, u64 va, unsigned acc, u64 *len);
void soft_tlb_drop_write(struct cpu *c, u64 pfn);

/* ---- debug.c: DR0-DR3. update(): DR0-DR7 were written. page(): must @va's page be slow?
 * access(): notes the data breakpoints met. fetch(): DR6 bits of those on the instruction there */
void soft_debug_update(struct cpu *c);
bool soft_debug_page(const struct cpu *c, u64 va);
void soft_debug_access(struct cpu *c, u64 va, unsigned size, bool write);
unsigned soft_debug_fetch(const struct cpu *c, u64 lin);

/* ---- block.c */
int soft_code_init(struct cpu *c);
void soft_code_fini(struct cpu *c);
void soft_code_flush(struct cpu *c);
u64 soft_code_idle(struct cpu *c);
void soft_code_trim(struct cpu *c);
const struct op *soft_code_find(struct cpu *c); /* at RIP; may raise */
const struct op *soft_code_single(struct cpu *c);
void soft_code_epoch(struct cpu *c, bool kernel, bool user);
void soft_code_invlpg(struct cpu *c, u64 va);
bool soft_code_written(struct cpu *c, u64 gpa, unsigned len); /* true: still code */
void soft_code_device_write(struct soft_vm *sv, u64 gpa, u64 len);
void soft_code_inbox(struct cpu *c);
bool soft_code_crossing(const struct op *first);
void *soft_arena_alloc(struct cpu *c, size_t n);

/* ---- trans.c */
unsigned soft_trans(struct cpu *c, const u8 *p, unsigned avail, unsigned max_insns, struct op *out,
		    unsigned *bytes, bool *crossing);
#define TRANS_OPS_MAX 72u

/* ---- seg.c */
void soft_seg_cache(struct cpu *c, unsigned seg, u16 sel, u64 base, u32 limit, u16 attr);
void soft_mode_update(struct cpu *c); /* after CS, CR0, CR4, EFER, CPL, AC changed */
void soft_seg_load(struct cpu *c, const struct op *o, unsigned seg, u16 sel);
void soft_far_jmp(struct cpu *c, const struct op *o, u16 sel, u64 rip, unsigned osz);
void soft_far_call(struct cpu *c, const struct op *o, u16 sel, u64 rip, unsigned osz);
void soft_far_ret(struct cpu *c, const struct op *o, unsigned osz, unsigned pop);
void soft_lldt(struct cpu *c, const struct op *o, u16 sel);
void soft_ltr(struct cpu *c, const struct op *o, u16 sel);
bool soft_desc_read(struct cpu *c, const struct op *o, u16 sel, u64 *lo, u64 *hi);
u64 soft_seg_ea(struct cpu *c, const struct op *o, unsigned seg, u64 off, unsigned size,
		bool write);
void soft_set_cs_flat(struct cpu *c, u16 sel, unsigned dpl, bool l);
void soft_set_ss_flat(struct cpu *c, u16 sel, unsigned dpl);

/* ---- msr.c, sys.c */
bool soft_msr_read(struct cpu *c, u32 msr, u64 *val);
bool soft_msr_write(struct cpu *c, u32 msr, u64 val);
u64 soft_tsc(struct cpu *c);
u64 soft_now_ns(struct cpu *c);
void soft_pvclock_update(struct cpu *c);
void soft_set_cr0(struct cpu *c, const struct op *o, u64 val);
void soft_set_cr3(struct cpu *c, u64 val);
void soft_set_cr4(struct cpu *c, const struct op *o, u64 val);
bool soft_io_allowed(struct cpu *c, const struct op *o, u16 port, unsigned size);
void soft_cpuid(struct cpu *c, u32 leaf, u32 sub, u32 out[4]);
void soft_cpuid_supported(struct cpuid_table *t);
void soft_mxcsr_load(struct cpu *c, u32 val);
u32 soft_mxcsr_read(struct cpu *c);
void soft_fp_check(struct cpu *c,
		   const struct op *o); /* after an operation, where the guest unmasked */

/* ---- run.c */
void soft_attn(struct cpu *c, u32 bits);
void soft_cpu_reset(struct cpu *c, bool init_only);

#endif
