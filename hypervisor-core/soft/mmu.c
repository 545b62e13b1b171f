/* mmu.c - guest virtual memory of the software CPU: page walks, the TLB's slow paths, invalidation.
 *
 * Three TLBs a vCPU: kernel, user, and kernel with EFLAGS.AC set (SMAP lets it reach user pages),
 * so that STAC/CLAC and privilege changes only switch a pointer. A flush bumps the epoch that is
 * part of every tag: O(1). CR3 writes keep global kernel entries; the few non-global ones are
 * listed and dropped.
 * A page that holds decoded code has no fast write tag: its writes come here and tell block.c.
 * Spec: SDM vol. 3, chapter 4. Accessed and dirty bits are set with an atomic compare-and-swap.
 * Threading: own vCPU only, but for the shared code-line words (see block.c for the protocol).
 */
#include <string.h>
#include <sys/mman.h>

#include "soft.h"

#define PTE_P	 1ULL
#define PTE_W	 2ULL
#define PTE_U	 4ULL
#define PTE_A	 0x20ULL
#define PTE_D	 0x40ULL
#define PTE_PS	 0x80ULL
#define PTE_G	 0x100ULL
#define PTE_NX	 (1ULL << 63)
#define PTE_ADDR 0x000ffffffffff000ULL

#define CR0_WP	 (1ULL << 16)
#define CR0_PG	 (1ULL << 31)
#define CR4_PSE	 (1ULL << 4)
#define CR4_PAE	 (1ULL << 5)
#define CR4_PGE	 (1ULL << 7)
#define CR4_SMEP (1ULL << 20)
#define CR4_SMAP (1ULL << 21)
#define EFER_LMA (1ULL << 10)
#define EFER_NXE (1ULL << 11)

struct walk {
	u64 gpa;
	bool w, u, nx, g, large, huge, d;
	u32 err; /* page fault error code, where the walk fails */
};

int soft_mmu_init(struct cpu *c)
{
	for (int i = 0; i < TLB_NIDX; i++) {
		void *p = mmap(NULL, TLB_SIZE * sizeof(struct tlbe), PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

		if (p == MAP_FAILED)
			return -ENOMEM;
		c->tlbs[i].e = p;
		c->tlbs[i].epoch = 1;
	}
	if (c->sv->npages) {
		void *p = mmap(NULL, c->sv->npages * sizeof(u16), PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

		if (p == MAP_FAILED)
			return -ENOMEM;
		c->wslot = p;
	}
	soft_mmu_select(c);
	return 0;
}

void soft_mmu_fini(struct cpu *c)
{
	for (int i = 0; i < TLB_NIDX; i++)
		if (c->tlbs[i].e)
			munmap(c->tlbs[i].e, TLB_SIZE * sizeof(struct tlbe));
	if (c->wslot)
		munmap(c->wslot, c->sv->npages * sizeof(u16));
}

/* soft_mmu_trim() - empty TLBs, their memory given back. */
void soft_mmu_trim(struct cpu *c)
{
	soft_tlb_flush(c, true);
	for (int i = 0; i < TLB_NIDX; i++) {
		/* a zero tag matches no epoch */
		madvise(c->tlbs[i].e, TLB_SIZE * sizeof(struct tlbe), MADV_DONTNEED);
		c->tlbs[i].epoch = 1;
	}
	if (c->wslot)
		madvise(c->wslot, c->sv->npages * sizeof(u16), MADV_DONTNEED);
	soft_mmu_select(c);
}

void soft_mmu_select(struct cpu *c)
{
	if (c->cpl == 3)
		c->idx = TLB_USER;
	else if ((c->cr4 & CR4_SMAP) && (c->eflags & EFL_AC))
		c->idx = TLB_KERN_AC;
	else
		c->idx = TLB_KERN;
	c->tlb = c->tlbs[c->idx].e;
	c->epoch = c->tlbs[c->idx].epoch;
}

static void tlb_bump(struct cpu *c, enum tlb_idx i)
{
	struct tlb *t = &c->tlbs[i];

	if (++t->epoch > TLB_EPOCH_MAX) {
		/* tags of an old turn of the counter would match again */
		memset(t->e, 0, TLB_SIZE * sizeof(struct tlbe));
		t->epoch = 1;
	}
	memset(t->large, 0, sizeof(t->large));
	t->huge = false;
	t->nnonglobal = 0;
	t->nonglobal_lost = false;
}

void soft_tlb_flush(struct cpu *c, bool global)
{
	c->n_flush++;
	tlb_bump(c, TLB_USER);
	tlb_bump(c, TLB_KERN_AC);
	if (global || c->tlbs[TLB_KERN].nonglobal_lost) {
		tlb_bump(c, TLB_KERN);
		soft_code_epoch(c, true, true);
		c->kern_code_nonglobal = false;
	} else {
		struct tlb *t = &c->tlbs[TLB_KERN];

		for (unsigned i = 0; i < t->nnonglobal; i++)
			memset(&t->e[t->nonglobal[i]], 0, sizeof(struct tlbe));
		t->nnonglobal = 0;
		soft_code_epoch(c, c->kern_code_nonglobal, true);
		c->kern_code_nonglobal = false;
	}
	soft_mmu_select(c);
}

static unsigned large_bit(u64 va)
{
	u64 p = va >> 21;

	return (p ^ (p >> 10)) & 1023;
}

void soft_tlb_invlpg(struct cpu *c, u64 va)
{
	unsigned n = (va >> PAGE_BITS) & (TLB_SIZE - 1);
	unsigned lb = large_bit(va);

	for (int i = 0; i < TLB_NIDX; i++) {
		struct tlb *t = &c->tlbs[i];

		if (t->huge || (t->large[lb >> 6] >> (lb & 63) & 1)) {
			tlb_bump(c, i);
			soft_code_epoch(c, i != TLB_USER, i == TLB_USER);
		} else if (((t->e[n].rtag ^ va) & ~PAGE_OFF) == 0) {
			memset(&t->e[n], 0, sizeof(struct tlbe));
		}
	}
	soft_code_invlpg(c, va);
	soft_mmu_select(c);
}

static void soft_dirty_mark(struct cpu *c, u64 gpa)
{
	_Atomic u64 *d = c->sv->dirty;
	u64 pfn = gpa >> PAGE_BITS;

	if (unlikely(d != NULL) && pfn / 64 < c->sv->dirty_words &&
	    !(atomic_load_explicit(&d[pfn / 64], memory_order_relaxed) >> (pfn % 64) & 1))
		atomic_fetch_or(&d[pfn / 64], 1ULL << (pfn % 64));
}

/* pte_update() - set @bits in the entry at @gpa if it still reads @old. */
static bool pte_update(struct cpu *c, u64 gpa, u64 *old, u64 bits, unsigned size)
{
	void *p = mem_ptr(c->vm->mem, gpa, size);

	if (!p)
		return true; /* entry in ROM or nowhere: cannot be marked */
	soft_dirty_mark(c, gpa);
	if (gpa >> PAGE_BITS < c->sv->npages &&
	    atomic_load_explicit(&c->sv->code_lines[gpa >> PAGE_BITS], memory_order_relaxed))
		soft_code_device_write(c->sv, gpa, size);
	if (size == 8) {
		u64 o = *old;

		if (!__atomic_compare_exchange_n((u64 *)p, &o, o | bits, false, __ATOMIC_SEQ_CST,
						 __ATOMIC_SEQ_CST))
			return false;
	} else {
		u32 o = (u32)*old;

		if (!__atomic_compare_exchange_n((u32 *)p, &o, o | (u32)bits, false,
						 __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
			return false;
	}
	*old |= bits;
	return true;
}

static bool pte_read(struct cpu *c, u64 gpa, unsigned size, u64 *val)
{
	void *p = mem_ptr(c->vm->mem, gpa, size);

	if (!p) {
		*val = size == 8 ? ~0ULL : ~0u; /* as a bus without anybody on it */
		return true;
	}
	*val = size == 8 ? *(volatile u64 *)p : *(volatile u32 *)p;
	return true;
}

/* mmu_walk() - translate @va. @acc ACC_*; @mark sets A and D. Return: true translated and
 * permitted, false with w->err. */
static bool mmu_walk(struct cpu *c, u64 va, unsigned acc, enum tlb_idx idx, bool mark,
		     struct walk *w)
{
	bool user = idx == TLB_USER, nxe = c->efer & EFER_NXE;
	u64 table = c->cr3 & PTE_ADDR, pte = 0, pte_gpa = 0;
	u32 uw = (user ? 4 : 0) | (acc & ACC_W ? 2 : 0) |
		 ((acc & ACC_X) && (nxe || (c->cr4 & CR4_SMEP)) ? 16 : 0);
	unsigned level, bits = 9, size = 8;
	u64 rsvd_hi = c->reserved_pa | (nxe ? 0 : PTE_NX);
	unsigned tries = 0;

	memset(w, 0, sizeof(*w));
	if (!(c->cr0 & CR0_PG)) {
		w->gpa = va & ~PAGE_OFF & 0xffffffffULL;
		w->w = w->u = w->d = true;
		return true;
	}
	if (c->efer & EFER_LMA) {
		level = 4;
	} else if (c->cr4 & CR4_PAE) {
		u64 pdpte;

		va &= 0xffffffff;
		pte_read(c, (c->cr3 & 0xffffffe0) + (va >> 30) * 8, 8, &pdpte);
		if (!(pdpte & PTE_P)) {
			w->err = uw;
			return false;
		}
		table = pdpte & PTE_ADDR;
		level = 2;
	} else {
		va &= 0xffffffff;
		table = c->cr3 & 0xfffff000;
		level = 2;
		bits = 10;
		size = 4;
		rsvd_hi = 0;
	}
	w->w = w->u = true;
	for (;; level--) {
		unsigned shift = PAGE_BITS + bits * (level - 1);

	again:
		if (++tries > 64) { /* another CPU keeps changing it: let the guest retry */
			w->err = uw;
			return false;
		}
		pte_gpa = table + ((va >> shift) & ((1u << bits) - 1)) * size;
		pte_read(c, pte_gpa, size, &pte);
		if (!(pte & PTE_P)) {
			w->err = uw;
			return false;
		}
		bool leaf = level == 1 ||
			    ((pte & PTE_PS) && level <= 3 && (size == 8 || (c->cr4 & CR4_PSE)));
		u64 rsvd = rsvd_hi;

		if (size == 8 && level == 4)
			rsvd |= PTE_PS;
		if (size == 8 && leaf && level > 1)
			rsvd |= ((1ULL << shift) - 1) & PTE_ADDR & ~0x1000ULL; /* bit 12 is PAT */
		if (pte & rsvd) {
			w->err = uw | 1 | 8;
			return false;
		}
		w->w &= !!(pte & PTE_W);
		w->u &= !!(pte & PTE_U);
		w->nx |= nxe && size == 8 && (pte & PTE_NX);
		if (!leaf) {
			if (mark && !(pte & PTE_A) && !pte_update(c, pte_gpa, &pte, PTE_A, size))
				goto again;
			table = size == 8 ? pte & PTE_ADDR : pte & 0xfffff000;
			continue;
		}
		/* permissions of the whole walk */
		bool ok = true;

		if (user) {
			ok = w->u && (!(acc & ACC_W) || w->w) && (!(acc & ACC_X) || !w->nx);
		} else {
			if (acc & ACC_X)
				ok = !w->nx && !((c->cr4 & CR4_SMEP) && w->u);
			else if (w->u && (c->cr4 & CR4_SMAP) && idx == TLB_KERN)
				ok = false;
			if ((acc & ACC_W) && !w->w && (c->cr0 & CR0_WP))
				ok = false;
		}
		if (!ok) {
			w->err = uw | 1;
			return false;
		}
		if (mark) {
			u64 need = PTE_A | (acc & ACC_W ? PTE_D : 0);

			if ((pte & need) != need && !pte_update(c, pte_gpa, &pte, need, size))
				goto again;
		}
		w->d = pte & PTE_D;
		w->g = (pte & PTE_G) && (c->cr4 & CR4_PGE);
		w->large = level > 1;
		w->huge = level == 3;
		if (size == 4 && level == 2)
			w->gpa = (pte & 0xffc00000) | ((pte & 0x1fe000) << 19) | (va & 0x3ff000);
		else
			w->gpa = (pte & PTE_ADDR & ~((1ULL << shift) - 1)) |
				 (va & ((1ULL << shift) - 1) & ~PAGE_OFF);
		return true;
	}
}

static bool canonical(u64 va)
{
	return (s64)(va << 16) >> 16 == (s64)va;
}

_Noreturn static void mmu_fault(struct cpu *c, const struct op *o, u64 va, u32 err)
{
	c->exc_cr2 = va;
	soft_raise_err(c, o, EXC_PF, err);
}

/* tlb_give_write() - a fast write tag for RAM page of @e, unless it holds code or writes are
 * logged. */
static void tlb_give_write(struct cpu *c, struct tlbe *e, enum tlb_idx idx)
{
	u64 pfn = e->gpaf >> PAGE_BITS;
	u16 slot, old;

	if (pfn >= c->sv->npages)
		return;
	slot = (u16)((unsigned)idx * TLB_SIZE + (unsigned)(e - c->tlbs[idx].e) + 1);
	old = c->wslot[pfn];
	if (old && old != slot && old != 0xffff) {
		struct tlb *t = &c->tlbs[(old - 1) / TLB_SIZE];
		struct tlbe *p = &t->e[(old - 1) % TLB_SIZE];

		if (p->gpaf >> PAGE_BITS == pfn && (p->wtag & TLB_EPOCH_MAX) == t->epoch)
			slot = 0xffff;
	} else if (old == 0xffff) {
		slot = 0xffff;
	}
	/* first say that we write fast, then look whether it is code: the decoder does the reverse
	 */
	*(volatile u16 *)&c->wslot[pfn] = slot;
	atomic_thread_fence(memory_order_seq_cst);
	if (atomic_load_explicit(&c->sv->code_lines[pfn], memory_order_relaxed))
		return;
	e->wtag = e->rtag;
}

/* soft_tlb_drop_write() - no fast writes to guest page @pfn any more (it becomes code). */
void soft_tlb_drop_write(struct cpu *c, u64 pfn)
{
	u16 slot = c->wslot[pfn];

	if (!slot)
		return;
	if (slot != 0xffff) {
		struct tlbe *e = &c->tlbs[(slot - 1) / TLB_SIZE].e[(slot - 1) % TLB_SIZE];

		if (e->gpaf >> PAGE_BITS == pfn)
			e->wtag = 0;
	} else {
		for (int i = 0; i < TLB_NIDX; i++)
			for (unsigned n = 0; n < TLB_SIZE; n++)
				if (c->tlbs[i].e[n].gpaf >> PAGE_BITS == pfn)
					c->tlbs[i].e[n].wtag = 0;
	}
	c->wslot[pfn] = 0;
}

static struct tlbe *tlb_fill(struct cpu *c, const struct op *o, u64 va, unsigned acc,
			     enum tlb_idx idx)
{
	struct tlb *t = &c->tlbs[idx];
	unsigned n = (va >> PAGE_BITS) & (TLB_SIZE - 1);
	struct tlbe *e = &t->e[n];
	const struct mem_region *r;
	struct walk w;

	c->n_tlbmiss++;
	if ((c->efer & EFER_LMA) && !canonical(va)) {
		if (acc & ACC_X)
			soft_raise_err(c, o, EXC_GP, 0);
		bool ss = o && (o->base == SLOT(X86_RSP) || o->base == SLOT(X86_RBP)) &&
			  o->index != SLOT(S_SEG + X86_FS) && o->index != SLOT(S_SEG + X86_GS);
		soft_raise_err(c, o, ss ? EXC_SS : EXC_GP, 0);
	}
	if (!mmu_walk(c, va, acc, idx, true, &w))
		mmu_fault(c, o, va, w.err);

	e->rtag = (va & ~PAGE_OFF) | t->epoch;
	e->wtag = 0;
	e->gpaf = w.gpa;
	if (!w.nx && !(idx != TLB_USER && w.u && (c->cr4 & CR4_SMEP)))
		e->gpaf |= TF_X;
	if (w.g)
		e->gpaf |= TF_GLOBAL;
	bool writable = (w.w || (idx != TLB_USER && !(c->cr0 & CR0_WP))) &&
			(w.d || (acc & ACC_W) || !(c->cr0 & CR0_PG));

	if (writable)
		e->gpaf |= TF_W;
	if (w.large) {
		unsigned lb = large_bit(va);

		t->large[lb >> 6] |= 1ULL << (lb & 63);
		t->huge |= w.huge;
	}
	if (idx == TLB_KERN && !w.g) {
		if (t->nnonglobal < 64)
			t->nonglobal[t->nnonglobal++] = (u16)n;
		else
			t->nonglobal_lost = true;
		if (acc & ACC_X)
			c->kern_code_nonglobal = true;
	}
	if (idx == TLB_KERN_AC && (acc & ACC_X) && !w.g)
		c->kern_code_nonglobal = true;
	r = mem_region_find(c->vm->mem, w.gpa);
	if (!r) {
		e->rtag |= TLB_SLOW;
		e->gpaf |= TF_MMIO;
		e->addend = 0;
		return e;
	}
	e->addend = (u64)(uintptr_t)(r->hva + (w.gpa - r->gpa)) - (va & ~PAGE_OFF);
	if (unlikely(c->dbg_data) && soft_debug_page(c, va))
		e->rtag |= TLB_SLOW;
	if (r->flags & MEM_ROM) {
		e->gpaf |= TF_ROM;
	} else if (writable) {
		if (acc & ACC_W)
			soft_dirty_mark(c, w.gpa);
		if (!c->sv->dirty || (acc & ACC_W))
			tlb_give_write(c, e, idx);
	}
	return e;
}

struct tlbe *soft_tlb_get(struct cpu *c, const struct op *o, u64 va, unsigned acc, enum tlb_idx idx)
{
	struct tlb *t = &c->tlbs[idx];
	struct tlbe *e = &t->e[(va >> PAGE_BITS) & (TLB_SIZE - 1)];

	if (likely((e->rtag & ~(u64)TLB_SLOW) == ((va & ~PAGE_OFF) | t->epoch)) &&
	    (!(acc & ACC_W) || (e->gpaf & TF_W)) && (!(acc & ACC_X) || (e->gpaf & TF_X))) {
		if ((acc & ACC_X) && idx != TLB_USER && !(e->gpaf & TF_GLOBAL))
			c->kern_code_nonglobal = true;
		return e;
	}
	return tlb_fill(c, o, va, acc, idx);
}

bool soft_mmu_probe(struct cpu *c, u64 va, u64 *gpa)
{
	struct walk w;

	if ((c->efer & EFER_LMA) && !canonical(va))
		return false;
	if (!mmu_walk(c, va, ACC_R, TLB_KERN_AC, false, &w))
		return false;
	*gpa = w.gpa | (va & PAGE_OFF);
	return true;
}

static u64 host_ld(const u8 *p, unsigned size)
{
	switch (size) {
	case 1:
		return *(const volatile u8 *)p;
	case 2:
		return *(const volatile m16 *)p;
	case 4:
		return *(const volatile m32 *)p;
	default:
		return *(const volatile m64 *)p;
	}
}

static void host_st(u8 *p, unsigned size, u64 v)
{
	switch (size) {
	case 1:
		*(volatile u8 *)p = (u8)v;
		break;
	case 2:
		*(volatile m16 *)p = (u16)v;
		break;
	case 4:
		*(volatile m32 *)p = (u32)v;
		break;
	default:
		*(volatile m64 *)p = v;
		break;
	}
}

/* The LAPIC's page is each vCPU's own; everything else is the bus's. */
static bool mmio_apic(struct cpu *c, u64 gpa)
{
	return (gpa & ~PAGE_OFF) == 0xfee00000 && c->vm->intc && c->vm->intc->apic_mmio_read;
}

static u64 mmio_ld(struct cpu *c, u64 gpa, unsigned size)
{
	c->n_mmio++;
	if (mmio_apic(c, gpa))
		return c->vm->intc->apic_mmio_read(c->vm->intc_opaque, c->index, gpa & PAGE_OFF,
						   size);
	return bus_read(c->vm->mmio, gpa, size);
}

static void mmio_st(struct cpu *c, u64 gpa, unsigned size, u64 val)
{
	c->n_mmio++;
	if (mmio_apic(c, gpa)) {
		c->vm->intc->apic_mmio_write(c->vm->intc_opaque, c->index, gpa & PAGE_OFF, size,
					     (u32)val);
		/* TPR and EOI may let another interrupt in */
		soft_attn(c, ATTN_INTR);
	} else {
		bus_write(c->vm->mmio, gpa, size, val);
	}
}

static u64 mmu_ld(struct cpu *c, const struct op *o, u64 va, unsigned size, enum tlb_idx idx)
{
	struct tlbe *e;

	if (unlikely((va & PAGE_OFF) + size > MEM_PAGE)) {
		u64 v = 0;

		for (unsigned i = 0; i < size; i++)
			v |= mmu_ld(c, o, va + i, 1, idx) << (8 * i);
		return v;
	}
	e = soft_tlb_get(c, o, va, ACC_R, idx);
	if (unlikely(c->dbg_data))
		soft_debug_access(c, va, size, false);
	if (unlikely(e->gpaf & TF_MMIO))
		return mmio_ld(c, (e->gpaf & ~PAGE_OFF) | (va & PAGE_OFF), size);
	return host_ld((const u8 *)(uintptr_t)(va + e->addend), size);
}

/* st_prepare() - the host pointer for a write inside one page, NULL where it went elsewhere (MMIO,
 * ROM). */
static u8 *st_prepare(struct cpu *c, const struct op *o, struct tlbe *e, u64 va, unsigned size,
		      enum tlb_idx idx)
{
	u64 gpa = (e->gpaf & ~PAGE_OFF) | (va & PAGE_OFF);

	if (unlikely(c->dbg_data))
		soft_debug_access(c, va, size, true);
	if (unlikely(e->gpaf & (TF_MMIO | TF_ROM)))
		return NULL;
	if (e->wtag != e->rtag) {
		if (!soft_code_written(c, gpa, size))
			tlb_give_write(c, e, idx);
		soft_dirty_mark(c, gpa);
	}
	return (u8 *)(uintptr_t)(va + e->addend);
}

static void mmu_st(struct cpu *c, const struct op *o, u64 va, unsigned size, u64 val,
		   enum tlb_idx idx)
{
	struct tlbe *e;
	u8 *p;

	if (unlikely((va & PAGE_OFF) + size > MEM_PAGE)) {
		soft_tlb_get(c, o, va, ACC_W, idx);
		soft_tlb_get(c, o, (va + size - 1) & ~PAGE_OFF, ACC_W, idx);
		for (unsigned i = 0; i < size; i++)
			mmu_st(c, o, va + i, 1, (val >> (8 * i)) & 0xff, idx);
		return;
	}
	e = soft_tlb_get(c, o, va, ACC_W, idx);
	p = st_prepare(c, o, e, va, size, idx);
	if (likely(p != NULL)) {
		host_st(p, size, val);
	} else if (e->gpaf & TF_MMIO) {
		mmio_st(c, (e->gpaf & ~PAGE_OFF) | (va & PAGE_OFF), size, val);
	}
}

u64 soft_ld(struct cpu *c, const struct op *o, u64 va, unsigned size)
{
	return mmu_ld(c, o, va, size, c->idx);
}

void soft_st(struct cpu *c, const struct op *o, u64 va, unsigned size, u64 val)
{
	c->fault_op = o;
	mmu_st(c, o, va, size, val, c->idx);
}

u64 soft_ld_sys(struct cpu *c, const struct op *o, u64 va, unsigned size)
{
	return mmu_ld(c, o, va, size, TLB_KERN);
}

void soft_st_sys(struct cpu *c, const struct op *o, u64 va, unsigned size, u64 val)
{
	c->fault_op = o;
	mmu_st(c, o, va, size, val, TLB_KERN);
}

void soft_ld_buf(struct cpu *c, const struct op *o, u64 va, void *buf, unsigned size)
{
	u8 *d = buf;

	while (size) {
		unsigned n = size >= 8 ? 8 : size >= 4 ? 4 : size >= 2 ? 2 : 1;
		u64 v = mmu_ld(c, o, va, n, c->idx);

		memcpy(d, &v, n);
		d += n;
		va += n;
		size -= n;
	}
}

/* soft_probe_w() - after this a store of @size bytes at @va neither faults nor unwinds (into its
 * own code page). */
void soft_probe_w(struct cpu *c, const struct op *o, u64 va, unsigned size)
{
	u64 first = MEM_PAGE - (va & PAGE_OFF);
	struct tlbe *e;

	c->fault_op = o;
	e = soft_tlb_get(c, o, va, ACC_W, c->idx);
	if (size <= first) {
		st_prepare(c, o, e, va, size, c->idx);
		return;
	}
	st_prepare(c, o, e, va, (unsigned)first, c->idx);
	e = soft_tlb_get(c, o, va + first, ACC_W, c->idx);
	st_prepare(c, o, e, va + first, size - (unsigned)first, c->idx);
}

void soft_st_buf(struct cpu *c, const struct op *o, u64 va, const void *buf, unsigned size)
{
	const u8 *s = buf;

	c->fault_op = o;
	soft_probe_w(c, o, va, size);
	while (size) {
		unsigned n = size >= 8 ? 8 : size >= 4 ? 4 : size >= 2 ? 2 : 1;
		u64 v = 0;

		memcpy(&v, s, n);
		mmu_st(c, o, va, n, v, c->idx);
		s += n;
		va += n;
		size -= n;
	}
}

void *soft_rmw(struct cpu *c, const struct op *o, u64 va, unsigned size)
{
	struct tlbe *e;
	u8 *p;

	c->fault_op = o;
	c->rmw_bounced = false;
	if (likely((va & PAGE_OFF) + size <= MEM_PAGE)) {
		e = soft_tlb_get(c, o, va, ACC_W, c->idx);
		p = st_prepare(c, o, e, va, size, c->idx);
		if (p)
			return p;
	} else {
		/* Across pages: no host instruction is atomic there. One such access at a time;
		 * both pages are checked first, so that nothing unwinds while the lock is held. */
		e = soft_tlb_get(c, o, va, ACC_W, c->idx);
		st_prepare(c, o, e, va, (unsigned)(MEM_PAGE - (va & PAGE_OFF)), c->idx);
		e = soft_tlb_get(c, o, (va + size - 1) & ~PAGE_OFF, ACC_W, c->idx);
		st_prepare(c, o, e, (va + size - 1) & ~PAGE_OFF, (unsigned)((va + size) & PAGE_OFF),
			   c->idx);
		pthread_mutex_lock(&c->sv->split_lock);
		c->rmw_locked = true;
	}
	for (unsigned i = 0; i < size; i += 8) {
		u64 v = mmu_ld(c, o, va + i, size - i < 8 ? size - i : 8, c->idx);

		memcpy(c->bounce + i, &v, 8);
	}
	c->rmw_bounced = true;
	c->rmw_va = va;
	c->rmw_size = size;
	return c->bounce;
}

void soft_rmw_end(struct cpu *c, const struct op *o)
{
	if (!c->rmw_bounced)
		return;
	c->rmw_bounced = false;
	for (unsigned i = 0; i < c->rmw_size; i += 8) {
		u64 v;

		memcpy(&v, c->bounce + i, 8);
		mmu_st(c, o, c->rmw_va + i, c->rmw_size - i < 8 ? c->rmw_size - i : 8, v, c->idx);
	}
	if (c->rmw_locked) {
		c->rmw_locked = false;
		pthread_mutex_unlock(&c->sv->split_lock);
	}
}

u8 *soft_span(struct cpu *c, const struct op *o, u64 va, unsigned acc, u64 *len)
{
	struct tlbe *e = soft_tlb_get(c, o, va, acc, c->idx);
	u64 n = MEM_PAGE - (va & PAGE_OFF);

	*len = n;
	if (e->rtag & TLB_SLOW)
		return NULL;
	if ((acc & ACC_W) && e->wtag != e->rtag)
		return NULL;
	return (u8 *)(uintptr_t)(va + e->addend);
}
