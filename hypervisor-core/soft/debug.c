/* debug.c - the debug registers' breakpoints: DR0-DR3 as DR7 arms them.
 *
 * Nothing of this is on the fast path. While a breakpoint is armed the vCPU runs one instruction at
 * a time (run.c), and the pages that a data breakpoint lies in have no fast entry in the TLB, so
 * that each access to them comes by mmu.c, which asks here. A system arms them for the task that is
 * debugged only, so others keep their speed.
 * Instruction breakpoints are faults before the instruction, held back by RF; data breakpoints are
 * traps behind it. I/O breakpoints (CR4.DE, R/W 2) are taken for disarmed.
 * Source: Intel SDM volume 3, 18.2 and 18.3; AMD APM volume 2, 13.1.
 */
#include "hypervisor-core/soft/soft.h"

enum { DBG_EXEC = 0, DBG_WRITE = 1, DBG_IO = 2, DBG_ACCESS = 3 };

static bool dbg_on(const struct cpu *c, unsigned n)
{
	return c->dr7 >> (2 * n) & 3;
}

static unsigned dbg_kind(const struct cpu *c, unsigned n)
{
	return c->dr7 >> (16 + 4 * n) & 3;
}

/* dbg_bytes() - 1, 2, 4 or 8; the address counts without the bits below. */
static unsigned dbg_bytes(const struct cpu *c, unsigned n)
{
	static const u8 bytes[4] = { 1, 2, 8, 4 };

	return bytes[c->dr7 >> (18 + 4 * n) & 3];
}

static bool dbg_data(const struct cpu *c, unsigned n)
{
	return dbg_on(c, n) && (dbg_kind(c, n) == DBG_WRITE || dbg_kind(c, n) == DBG_ACCESS);
}

void soft_debug_update(struct cpu *c)
{
	bool data = false, armed = false;

	for (unsigned n = 0; n < 4; n++) {
		data |= dbg_data(c, n);
		armed |= dbg_on(c, n) && dbg_kind(c, n) != DBG_IO;
	}
	/* entries that are fast must go, and so may those that need no longer be slow */
	if (data || c->dbg_data)
		soft_tlb_flush(c, true);
	c->dbg_data = data;
	c->dbg_armed = armed;
	c->dbg_hit = 0;
}

bool soft_debug_page(const struct cpu *c, u64 va)
{
	for (unsigned n = 0; n < 4; n++)
		if (dbg_data(c, n) && ((c->dr[n] ^ va) & ~PAGE_OFF) == 0)
			return true;
	return false;
}

void soft_debug_access(struct cpu *c, u64 va, unsigned size, bool write)
{
	for (unsigned n = 0; n < 4; n++) {
		unsigned bytes = dbg_bytes(c, n);
		u64 at = c->dr[n] & ~(u64)(bytes - 1);

		if (dbg_data(c, n) && (write || dbg_kind(c, n) == DBG_ACCESS) && va < at + bytes &&
		    at < va + size)
			c->dbg_hit |= (u8)(1u << n);
	}
}

unsigned soft_debug_fetch(const struct cpu *c, u64 lin)
{
	unsigned hit = 0;

	for (unsigned n = 0; n < 4; n++)
		if (dbg_on(c, n) && dbg_kind(c, n) == DBG_EXEC && c->dr[n] == lin)
			hit |= 1u << n;
	return hit;
}
