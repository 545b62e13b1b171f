/* x86_state.h - the architectural state of one x86-64 vCPU, the same for every accelerator.
 * Saved field by field (x86_state_save/load), never by sizeof. Numbering and layout of segments and
 * flags follow the Intel SDM vol. 3; @xsave is the standard (non-compacted) XSAVE format.
 */
#ifndef CORE_X86_STATE_H
#define CORE_X86_STATE_H

#include <stdint.h>

#include "common/state.h"

enum { X86_RAX, X86_RCX, X86_RDX, X86_RBX, X86_RSP, X86_RBP, X86_RSI, X86_RDI }; /* then r8..r15 */
enum { X86_ES, X86_CS, X86_SS, X86_DS, X86_FS, X86_GS, X86_LDTR, X86_TR, X86_NSEGS };

struct x86_seg {
	uint64_t base;
	uint32_t limit; /* in bytes, granularity applied */
	uint16_t sel;
	/* descriptor bits 40-55: type 0-3, S 4, DPL 5-6, P 7, AVL 12, L 13, D/B 14, G 15; bit 8
	 * = unusable */
	uint16_t attr;
};

#define X86_MSRS_MAX  160
#define X86_XSAVE_MAX 4096

struct x86_msr {
	uint32_t index;
	uint64_t value;
};

enum x86_mp_state { X86_MP_RUNNABLE, X86_MP_UNINIT, X86_MP_INIT, X86_MP_SIPI, X86_MP_HALTED };

struct x86_state {
	uint64_t gpr[16];
	uint64_t rip, rflags;
	struct x86_seg seg[X86_NSEGS];
	uint64_t gdt_base, idt_base;
	uint16_t gdt_limit, idt_limit;
	uint64_t cr0, cr2, cr3, cr4, cr8, xcr0, efer, apic_base;
	uint64_t dr[4], dr6, dr7;
	uint32_t xsave_len;
	uint8_t xsave[X86_XSAVE_MAX];
	unsigned nmsrs;
	struct x86_msr msr[X86_MSRS_MAX];
	enum x86_mp_state mp_state;
	/* events in flight. exc_pending: 1 an exception is being delivered, 2 it is raised and its
	 * payload (CR2 or DR6 bits, where exc_has_payload) is not in the registers yet */
	uint8_t exc_pending, exc_nr, exc_has_error, exc_has_payload;
	uint32_t exc_error;
	uint64_t exc_payload;
	uint8_t intr_injected, intr_nr, intr_soft, intr_shadow;
	uint8_t nmi_injected, nmi_pending, nmi_masked;
	uint8_t sipi_vector;
	uint8_t has_lapic; /* @lapic is meaningful (accelerator's own LAPIC) */
	uint8_t lapic[1024];
};

/* x86_state_reset() - power-on state (SDM vol. 3, 9.1.1), for the boot CPU or an AP. */
void x86_state_reset(struct x86_state *s, unsigned cpu_index);
/* x86_state_long_mode() - flat 64-bit ring 0 with paging at @cr3; used by the direct boot entries.
 */
void x86_state_long_mode(struct x86_state *s, uint64_t cr3, uint64_t gdt_base, uint16_t gdt_limit);
void x86_state_save(const struct x86_state *s, struct state_writer *w);
int x86_state_load(struct x86_state *s, const struct state_reader *r, struct err *e);

#endif
