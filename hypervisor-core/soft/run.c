/* run.c - the run loop of one vCPU: interrupts, halts, exceptions, messages from other threads.
 *
 * Handlers return NULL to come back here with RIP at the next instruction. `attn` is the one word
 * that other threads set; blocks look at it on every taken jump. An interrupt that cannot be taken
 * yet (IF = 0) is remembered in irq_wait, and whoever sets IF raises attn again. After STI and
 * loads of SS one instruction runs alone (inhibit) before the next interrupt.
 */
#include <string.h>

#include "flags.h"
#include "run.h"

#include "common/units.h"

/* soft_attn() - any thread, async-signal-safe but for the wake-up, which only a sleeping vCPU
 * needs. */
void soft_attn(struct cpu *c, u32 bits)
{
	atomic_fetch_or(&c->attn, bits);
}

void soft_wake(struct cpu *c, u32 bits)
{
	soft_attn(c, bits);
	pthread_mutex_lock(&c->lock);
	pthread_cond_broadcast(&c->wake);
	pthread_mutex_unlock(&c->lock);
}

/* irq_pending() - what would be delivered now, without taking it. */
static bool irq_pending(struct cpu *c)
{
	const struct intc_ops *ic = c->vm->intc;
	void *op = c->vm->intc_opaque;

	if (!ic)
		return false;
	if (ic->apic_pending && ic->apic_pending(op, c->index) >= 0)
		return true;
	return ic->pic_pending && (!ic->apic_accepts_pic || ic->apic_accepts_pic(op, c->index)) &&
	       c->index == 0 && ic->pic_pending(op);
}

static int irq_take(struct cpu *c)
{
	const struct intc_ops *ic = c->vm->intc;
	void *op = c->vm->intc_opaque;
	int v = -1;

	if (!ic)
		return -1;
	/* the PIC (ExtINT) goes first, as on hardware */
	if (c->index == 0 && ic->pic_pending && ic->pic_ack &&
	    (!ic->apic_accepts_pic || ic->apic_accepts_pic(op, 0)) && ic->pic_pending(op))
		v = ic->pic_ack(op);
	if (v < 0 && ic->apic_pending && ic->apic_pending(op, c->index) >= 0)
		v = ic->apic_ack(op, c->index);
	return v;
}

static void cpu_init_signal(struct cpu *c)
{
	soft_cpu_reset(c, true);
	c->mp = c->index == 0 ? X86_MP_RUNNABLE : X86_MP_INIT;
	c->halted = 0;
}

static void cpu_sipi(struct cpu *c)
{
	u8 vec = c->sipi_vector;

	if (c->mp != X86_MP_INIT && c->mp != X86_MP_UNINIT)
		return;
	soft_seg_cache(c, X86_CS, (u16)(vec << 8), (u64)vec << 12, 0xffff, 0x9b);
	c->r[S_RIP] = 0;
	c->mp = X86_MP_RUNNABLE;
	c->halted = 0;
	soft_mode_update(c);
}

/* run_attn() - take in what others asked. Return: true to leave vcpu_run. */
static bool run_attn(struct cpu *c)
{
	u32 a = atomic_exchange(&c->attn, 0);

	if (a & ATTN_CODE)
		soft_code_inbox(c);
	if (a & ATTN_FLUSH) {
		soft_tlb_flush(c, true);
		memset(c->wslot, 0, c->sv->npages * sizeof(u16));
		pthread_mutex_lock(&c->lock);
		c->flush_done = c->flush_asked;
		pthread_cond_broadcast(&c->wake);
		pthread_mutex_unlock(&c->lock);
	}
	if (a & ATTN_INIT)
		cpu_init_signal(c);
	if (a & ATTN_SIPI)
		cpu_sipi(c);
	if (a & ATTN_NMI)
		c->nmi_pending = true;
	if (a & ATTN_INTR)
		c->irq_wait = 1;
	if (a & ATTN_STOP)
		return true;
	return (a & ATTN_KICK) && atomic_load(&c->v->requests);
}

static bool cpu_waits(const struct cpu *c)
{
	return c->halted || (c->mp != X86_MP_RUNNABLE && c->mp != X86_MP_HALTED);
}

/* run_irq() - deliver what may be delivered. RIP is exact. */
static void run_irq(struct cpu *c)
{
	if (c->mp != X86_MP_RUNNABLE)
		return;
	if (c->nmi_pending && !c->nmi_masked) {
		c->nmi_pending = false;
		c->nmi_masked = true;
		c->halted = 0;
		c->n_irq++;
		c->exc_nested = EXC_NMI + 1;
		soft_interrupt(c, EXC_NMI, false, c->r[S_RIP], false, 0);
		c->exc_nested = 0;
		return;
	}
	if (!c->irq_wait)
		return;
	if (!irq_pending(c)) {
		c->irq_wait = 0;
		return;
	}
	if (!(c->eflags & EFL_IF))
		return;
	int vec = irq_take(c);

	c->irq_wait = irq_pending(c);
	if (vec < 0)
		return;
	c->halted = 0;
	c->n_irq++;
	soft_interrupt(c, (unsigned)vec, false, c->r[S_RIP], false, 0);
}

static void run_sleep(struct cpu *c)
{
	struct timespec ts;

	pthread_mutex_lock(&c->lock);
	while (!atomic_load(&c->attn)) {
		u64 left = soft_code_idle(c);

		if (left == ~0ULL) {
			pthread_cond_wait(&c->wake, &c->lock);
		} else if (left) {
			clock_gettime(CLOCK_REALTIME, &ts);
			left += (u64)ts.tv_nsec;
			ts.tv_sec += (time_t)(left / NS_PER_S);
			ts.tv_nsec = (long)(left % NS_PER_S);
			pthread_cond_timedwait(&c->wake, &c->lock, &ts);
		} else {
			soft_code_trim(c);
		}
	}
	pthread_mutex_unlock(&c->lock);
}

/* run_ops() - one stretch of blocks, until a handler asks for the loop. */
static void run_ops(struct cpu *c, const struct op *o)
{
	while (o)
		o = o->fn(c, o);
}

static void run_single_end(struct cpu *c)
{
	if (c->single)
		c->icount_limit = c->single_limit;
	c->single = 0;
}

/* run_single() - one instruction, what comes before it (#DB by an instruction breakpoint, unless RF
 * holds it back) and after it (#DB by TF or a data breakpoint). */
static void run_single(struct cpu *c)
{
	u64 lin = c->mode == MODE_64 ? c->r[S_RIP] : (u32)(c->r[S_RIP] + c->seg[X86_CS].base);
	bool tf = c->eflags & EFL_TF, rf = c->eflags & EFL_RF;

	if (unlikely(c->dbg_armed) && !rf) {
		c->exc_dr6 = soft_debug_fetch(c, lin);
		if (c->exc_dr6)
			soft_raise(c, NULL, EXC_DB);
	}
	c->eflags &= ~EFL_RF; /* for one instruction, which may be the IRET that sets it */
	c->single = 1;
	c->single_limit = c->icount_limit;
	c->icount_limit =
	    0; /* a jump comes back here instead of running on in its target's block */
	run_ops(c, soft_code_single(c));
	run_single_end(c);
	c->exc_dr6 = (tf ? 0x4000 : 0) | c->dbg_hit;
	c->dbg_hit = 0;
	if (c->exc_dr6)
		soft_raise(c, NULL, EXC_DB);
}

/* soft_run_some() - run until the vCPU must leave, sleeps (where @may_sleep is false), or its
 * icount budget is used. Return: false where it left for good (kick, shutdown, stop). */
bool soft_run_some(struct cpu *c, bool may_sleep)
{
	jmp_buf env;
	volatile bool restart_single = false;
	int why;

	/* cppcheck-suppress autoVariables ; gone before this returns */
	c->env = &env;
	why = _setjmp(env);
	if (why) {
		run_single_end(c);
		c->inhibit = 0;
		c->dbg_hit = 0; /* of an instruction that did not complete */
		soft_fix_rip(c);
		if (why == JMP_EXC) {
			restart_single = false;
			c->icount++; /* so that a loop of faults uses up its budget too */
			soft_deliver_exception(c); /* may come back to the line above */
		} else if (why == JMP_RESTART_SINGLE) {
			restart_single = true;
		}
	}
	for (;;) {
		if (unlikely(c->shutdown))
			return false;
		if (unlikely(c->icount >= c->icount_limit) && !restart_single && !c->inhibit)
			return true;
		if (unlikely(restart_single)) {
			/* the instruction writes into its own page: alone, it is right */
			restart_single = false;
			run_single(c);
			continue;
		}
		if (unlikely(atomic_load_explicit(&c->attn, memory_order_relaxed))) {
			if (run_attn(c))
				return false;
		}
		if (unlikely(c->inhibit)) {
			c->inhibit = 0;
			if (!c->halted) {
				run_single(c);
				continue;
			}
		}
		if (unlikely(c->pending_kind)) {
			u8 k = c->pending_kind;

			c->pending_kind = 0;
			c->nmi_masked |= k == 2;
			c->halted = 0;
			soft_interrupt(c, c->pending_event, false, c->r[S_RIP], k == 4,
				       c->pending_err);
		}
		if (unlikely(c->irq_wait || c->nmi_pending))
			run_irq(c);
		if (unlikely(cpu_waits(c))) {
			if (!may_sleep)
				return true;
			run_sleep(c);
			continue;
		}
		if (unlikely((c->eflags & EFL_TF) || c->dbg_armed)) {
			run_single(c);
			continue;
		}
		run_ops(c, soft_code_find(c));
	}
}

void soft_cpu_reset(struct cpu *c, bool init_only)
{
	u64 cr0 = init_only ? (c->cr0 & 0x60000000) | 0x10 : 0x60000010;

	memset(c->r, 0, sizeof(c->r));
	c->r[X86_RDX] = 0x00800f12;
	c->r[S_RIP] = 0xfff0;
	flags_set_all(c, 0);
	c->eflags = 0;
	for (unsigned i = 0; i < X86_NSEGS; i++)
		soft_seg_cache(c, i, 0, 0, 0xffff,
			       i == X86_CS     ? 0x9b
			       : i == X86_LDTR ? 0x82
			       : i == X86_TR   ? 0x8b
					       : 0x93);
	soft_seg_cache(c, X86_CS, 0xf000, 0xffff0000, 0xffff, 0x9b);
	c->gdt_base = c->idt_base = 0;
	c->gdt_limit = c->idt_limit = 0xffff;
	c->cr0 = cr0;
	c->cr2 = c->cr3 = c->cr4 = c->efer = 0;
	c->cr8 = 0;
	memset(c->dr, 0, sizeof(c->dr));
	c->dr6 = 0xffff0ff0;
	c->dr7 = 0x400;
	soft_debug_update(c);
	c->cpl = 0;
	c->irq_wait = c->inhibit = c->halted = 0;
	c->nmi_pending = c->nmi_masked = false;
	c->exc_nested = 0;
	c->fault_op = NULL;
	c->star = c->lstar = c->cstar = c->fmask = c->kernel_gs = 0;
	if (!init_only) {
		memset(&c->fx, 0, sizeof(c->fx));
		c->fx.fcw = 0x40;
		c->fx.ftw = 0xff;
		soft_mxcsr_load(c, 0x1f80);
		c->tsc_adjust = c->tsc_aux = 0;
		c->pv_system = c->pv_wall = c->pv_poll = 0;
		c->pat = 0x0007040600070406ULL;
		c->mtrr_def = 0;
		c->misc_enable = 1;
	}
	soft_tlb_flush(c, true);
	soft_mode_update(c);
}
