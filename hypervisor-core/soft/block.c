/* block.c - the code cache of one vCPU: blocks of pre-decoded operations, found by guest physical
 * page.
 *
 * A block starts at (physical page, offset, mode) and stays inside its page, but for a single
 * instruction that crosses into the next, which is a block of its own and remembers both pages.
 * Blocks lie in an arena that is dropped whole when full. A jump inside the page is linked
 * directly: all blocks of a page die together.
 * Virtual addresses come in by the jump cache, tagged by an epoch.
 *
 * Self-modifying code: sv->code_lines[page] has a bit for each 64-byte line that some vCPU decoded.
 * The decoder sets bits, then takes away fast writes (own: at once; other vCPUs', where their wslot
 * says they have one: by message). A writer says it will write fast (wslot), then looks at
 * code_lines. One of the two sees the other. A write into decoded lines clears the page's word and
 * sends its number to every vCPU; they drop the blocks at their next jump backwards, indirect or
 * out of the page, so before any IPI or any flag that the writer stores later can lead them there.
 */
#include <string.h>
#include <sys/mman.h>

#include "soft.h"

#include "common/units.h"

struct block {
	u32 next; /* arena offset of the next block of the bucket; 0 = none */
	u16 off;  /* start in the page */
	u8 mode;  /* MODE_* | fp_ok << 2 */
	u8 crossing;
	u8 nbytes, bytes[15]; /* crossing: the instruction, compared again when found */
	struct op ops[];
};

struct cpage {
	struct cpage *next;
	u64 pfn;
	u32 bucket[64]; /* by 64-byte line */
};

#define ARENA_BYTES (24u << 20)
#define ARENA_LEAN  (512u << 10) /* what an idle vCPU may keep */
#define IDLE_NS	    2000000000ULL
#define IDLE_INSNS  20000000u /* executed in IDLE_NS or more: still idle */

void *soft_arena_alloc(struct cpu *c, size_t n)
{
	n = (n + 15) & ~(size_t)15;
	if (c->arena_used + n > c->arena_size)
		return NULL;
	c->arena_used += n;
	return c->arena + c->arena_used - n;
}

int soft_code_init(struct cpu *c)
{
	void *p = mmap(NULL, ARENA_BYTES, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return -ENOMEM;
	/* an idle guest's few blocks are not worth a huge page */
	madvise(p, 2u << 20, MADV_NOHUGEPAGE);
	c->arena = p;
	c->arena_size = ARENA_BYTES;
	c->arena_used = 64; /* offset 0 means none */
	p = mmap(NULL, sizeof(struct jce) << JC_BITS, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return -ENOMEM;
	c->jc = p;
	c->next_code_epoch = 3;
	c->code_epoch[0] = 1;
	c->code_epoch[1] = 2;
	pthread_mutex_init(&c->inbox_lock, NULL);
	return 0;
}

void soft_code_fini(struct cpu *c)
{
	if (c->arena)
		munmap(c->arena, ARENA_BYTES);
	if (c->jc)
		munmap(c->jc, sizeof(struct jce) << JC_BITS);
	pthread_mutex_destroy(&c->inbox_lock);
}

bool soft_code_crossing(const struct op *first)
{
	return ((const struct block *)((const u8 *)first - offsetof(struct block, ops)))->crossing;
}

/* soft_code_epoch() - forget where virtual addresses lead: kernel's, user's, or both. */
void soft_code_epoch(struct cpu *c, bool kernel, bool user)
{
	if (kernel)
		c->code_epoch[0] = c->next_code_epoch++;
	if (user)
		c->code_epoch[1] = c->next_code_epoch++;
	c->jctx = c->code_epoch[c->cpl == 3] << 4 | (u64)(c->cpl == 3) << 3 | (u64)c->fp_ok << 2 |
		  c->mode;
}

void soft_code_flush(struct cpu *c)
{
	memset(c->pages, 0, sizeof(c->pages));
	c->arena_used = 64;
	c->arena_gen++;
	soft_code_epoch(c, true, true);
}

/* soft_code_idle() - a vCPU is about to sleep, or has slept: nanoseconds until it counts as idle, if nothing
 * wakes it; 0 it does (then soft_code_trim() it); ~0 there is little to give back. */
u64 soft_code_idle(struct cpu *c)
{
	u64 now;

	if (c->arena_used <= ARENA_LEAN)
		return ~0ULL;
	now = clock_mono_ns();
	if (c->icount - c->idle_icount > IDLE_INSNS || !c->idle_since_ns) {
		c->idle_since_ns = now;
		c->idle_icount = c->icount;
	}
	return now - c->idle_since_ns >= IDLE_NS ? 0 : IDLE_NS - (now - c->idle_since_ns);
}

/* soft_code_trim() - give the memory of decoded code and of the TLBs back to the host. No handler is
 * under way; what is needed again is decoded again. */
void soft_code_trim(struct cpu *c)
{
	soft_mmu_trim(c);
	soft_code_flush(c);
	madvise(c->arena, ARENA_BYTES, MADV_DONTNEED);
	madvise(c->jc, sizeof(struct jce) << JC_BITS, MADV_DONTNEED);
	c->fault_op = NULL;
	c->idle_since_ns = 0;
}

void soft_code_invlpg(struct cpu *c, u64 va)
{
	/* the page, and the one before, whose last instruction may reach into it */
	for (int i = 0; i < 2; i++, va -= MEM_PAGE) {
		u64 t = va ^ (va >> 6);

		memset(&c->jc[(t >> 6) & 0xfc0], 0, 64 * sizeof(struct jce));
	}
}

static struct cpage *cpage_find(struct cpu *c, u64 pfn)
{
	struct cpage *p = c->pages[(pfn ^ (pfn >> 11)) % CPAGE_HASH];

	while (p && p->pfn != pfn)
		p = p->next;
	return p;
}

static struct cpage *cpage_get(struct cpu *c, u64 pfn)
{
	struct cpage **head = &c->pages[(pfn ^ (pfn >> 11)) % CPAGE_HASH], *p = cpage_find(c, pfn);

	if (p)
		return p;
	p = soft_arena_alloc(c, sizeof(*p));
	if (!p)
		return NULL;
	memset(p, 0, sizeof(*p));
	p->pfn = pfn;
	p->next = *head;
	*head = p;
	return p;
}

/* code_drop() - this vCPU's blocks of a page. */
static void code_drop(struct cpu *c, u64 pfn)
{
	struct cpage *p = cpage_find(c, pfn);

	if (!p)
		return;
	memset(p->bucket, 0, sizeof(p->bucket));
	soft_code_epoch(c, true, true);
	c->n_inval++;
}

static void code_post(struct cpu *to, u64 pfn)
{
	pthread_mutex_lock(&to->inbox_lock);
	if (to->inbox_n < 64)
		to->inbox[to->inbox_n++] = pfn;
	else
		to->inbox_all = true;
	pthread_mutex_unlock(&to->inbox_lock);
	soft_attn(to, ATTN_CODE);
}

#define INBOX_STRIP (1ULL << 63) /* drop fast writes, then have everybody drop the page's blocks */

void soft_code_inbox(struct cpu *c)
{
	u64 list[64];
	unsigned n;
	bool all;

	pthread_mutex_lock(&c->inbox_lock);
	n = c->inbox_n;
	all = c->inbox_all;
	memcpy(list, c->inbox, n * sizeof(list[0]));
	c->inbox_n = 0;
	c->inbox_all = false;
	pthread_mutex_unlock(&c->inbox_lock);
	for (unsigned i = 0; i < n; i++) {
		u64 pfn = list[i] & ~INBOX_STRIP;

		if (list[i] & INBOX_STRIP) {
			soft_tlb_drop_write(c, pfn);
			for (unsigned k = 0; k < c->sv->ncpus; k++)
				if (c->sv->cpus[k] && c->sv->cpus[k] != c)
					code_post(c->sv->cpus[k], pfn);
		}
		code_drop(c, pfn);
	}
	if (all) {
		/* too many to name: as if every page had been named */
		memset(c->wslot, 0, c->sv->npages * sizeof(u16));
		soft_tlb_flush(c, true);
		soft_code_flush(c);
	}
}

/* code_claim() - the decoder will read lines of @pfn. Sets the bits first, bytes are read after. */
static void code_claim(struct cpu *c, u64 pfn, u64 lines)
{
	_Atomic u64 *w = &c->sv->code_lines[pfn];
	u64 old = atomic_load_explicit(w, memory_order_relaxed);

	if ((old & lines) == lines)
		return;
	old = atomic_fetch_or(w, lines);
	if (old)
		return;
	soft_tlb_drop_write(c, pfn);
	for (unsigned k = 0; k < c->sv->ncpus; k++) {
		struct cpu *t = c->sv->cpus[k];

		if (t && t != c && ((volatile u16 *)t->wslot)[pfn])
			code_post(t, pfn | INBOX_STRIP);
	}
}

static u64 line_mask(u64 off, u64 len)
{
	unsigned a = off >> 6, b = (off + len - 1) >> 6;

	if (b > 63)
		b = 63;
	return (b == 63 ? ~0ULL : (1ULL << (b + 1)) - 1) & ~((1ULL << a) - 1);
}

/* code_invalidate() - the page's lines are written: nobody's blocks there stay. */
static void code_invalidate(struct soft_vm *sv, struct cpu *self, u64 pfn)
{
	if (!atomic_exchange(&sv->code_lines[pfn], 0))
		return;
	for (unsigned k = 0; k < sv->ncpus; k++) {
		struct cpu *t = sv->cpus[k];

		if (t && t != self)
			code_post(t, pfn);
	}
	if (self)
		code_drop(self, pfn);
}

/* soft_code_written() - a vCPU is about to write inside one page that has no fast write tag.
 * Return: true, the page still holds code; false, it may be written fast. Unwinds where the write
 * is into the page that runs: the instruction is then done again alone. */
bool soft_code_written(struct cpu *c, u64 gpa, unsigned len)
{
	u64 pfn = gpa >> PAGE_BITS, w, here;

	if (pfn >= c->sv->npages)
		return true;
	w = atomic_load(&c->sv->code_lines[pfn]);
	if (!w)
		return false;
	bool beside = !(w & line_mask(gpa & PAGE_OFF, len));
	bool running =
	    !c->single && c->fault_op &&
	    soft_mmu_probe(c, (c->mode == MODE_64 ? 0 : c->seg[X86_CS].base) + RIP, &here) &&
	    here >> PAGE_BITS == pfn;

	/* Data beside code; but a page that is written a lot was given back and means data now. Not the page
	 * that runs: an instruction that has probed its store counts on no unwinding. */
	if (beside && (running || (++c->n_codewr & 63)))
		return true;
	if (running)
		soft_leave(c, JMP_RESTART_SINGLE);
	code_invalidate(c->sv, c, pfn);
	return false;
}

void soft_code_device_write(struct soft_vm *sv, u64 gpa, u64 len)
{
	if (!sv->code_lines || !len)
		return;
	for (u64 pfn = gpa >> PAGE_BITS; pfn <= (gpa + len - 1) >> PAGE_BITS; pfn++)
		if (pfn < sv->npages &&
		    atomic_load_explicit(&sv->code_lines[pfn], memory_order_relaxed))
			code_invalidate(sv, NULL, pfn);
}

/* code_fetch() - bytes of an instruction that crosses pages, or lies in no memory, into @buf (15).
 */
static unsigned code_fetch(struct cpu *c, u64 lin, u8 *buf, u64 *gpa2)
{
	unsigned n = 0;

	*gpa2 = ~0ULL;
	while (n < 15) {
		struct tlbe *e = soft_tlb_get(c, NULL, lin + n, ACC_X, c->idx);
		u64 gpa = (e->gpaf & ~PAGE_OFF) | ((lin + n) & PAGE_OFF);
		unsigned k = (unsigned)(MEM_PAGE - (gpa & PAGE_OFF));

		if (k > 15 - n)
			k = 15 - n;
		if (n)
			*gpa2 = gpa >> PAGE_BITS;
		if (e->gpaf & TF_MMIO) {
			memset(buf + n, 0xff, k);
		} else {
			if (gpa >> PAGE_BITS < c->sv->npages)
				code_claim(c, gpa >> PAGE_BITS, line_mask(gpa & PAGE_OFF, k));
			memcpy(buf + n, (const u8 *)(uintptr_t)(lin + n + e->addend), k);
		}
		n += k;
		/* the next page only where the instruction needs it */
		if (n < 15) {
			struct op t[TRANS_OPS_MAX];
			unsigned bytes;
			bool cross = false;

			soft_trans(c, buf, n, 1, t, &bytes, &cross);
			if (!cross)
				break;
		}
	}
	return n;
}

static u64 code_lin(struct cpu *c)
{
	if (c->mode == MODE_64)
		return RIP;
	if (RIP > c->seg[X86_CS].limit)
		soft_raise_err(c, NULL, EXC_GP, 0);
	return (u32)(RIP + c->seg[X86_CS].base);
}

/* soft_code_single() - the one instruction at RIP, decoded afresh, run apart from any block. */
const struct op *soft_code_single(struct cpu *c)
{
	u8 buf[16];
	u64 gpa2;
	unsigned n, bytes;
	bool cross;

	c->fault_op = NULL;
	n = code_fetch(c, code_lin(c), buf, &gpa2);
	soft_trans(c, buf, n, 1, c->scratch, &bytes, &cross);
	return c->scratch;
}

static void jc_put(struct cpu *c, const struct op *ops)
{
	u64 t = RIP ^ (RIP >> 6);
	struct jce *j = &c->jc[((t >> 6) & 0xfc0) | (t & 0x3f)];

	j->rip = RIP;
	j->ctx = c->jctx;
	j->ops = ops;
}

const struct op *soft_code_find(struct cpu *c)
{
	u64 lin, gpa, pfn, off;
	struct op tmp[TRANS_OPS_MAX];
	struct tlbe *e;
	struct cpage *p;
	struct block *b;
	unsigned nops, bytes;
	bool crossing = false;
	u64 gpa2 = ~0ULL;
	u8 mode = c->mode | (u8)(c->fp_ok << 2);

	{
		u64 t = RIP ^ (RIP >> 6);
		struct jce *j = &c->jc[((t >> 6) & 0xfc0) | (t & 0x3f)];

		if (j->rip == RIP && j->ctx == c->jctx)
			return j->ops;
	}
	c->fault_op = NULL;
	lin = code_lin(c);
	e = soft_tlb_get(c, NULL, lin, ACC_X, c->idx);
	gpa = (e->gpaf & ~PAGE_OFF) | (lin & PAGE_OFF);
	pfn = gpa >> PAGE_BITS;
	off = gpa & PAGE_OFF;
	if ((e->gpaf & TF_MMIO) || pfn >= c->sv->npages)
		return soft_code_single(c);
	p = cpage_get(c, pfn);
	if (!p) {
		soft_code_flush(c);
		p = cpage_get(c, pfn);
	}
	for (u32 n = p->bucket[off >> 6]; n; n = b->next) {
		b = (struct block *)(c->arena + n);
		if (b->off != off || b->mode != mode)
			continue;
		if (b->crossing) {
			u8 buf[16];

			/* the second page may be another one now, or written */
			if (code_fetch(c, lin, buf, &gpa2) < b->nbytes ||
			    memcmp(buf, b->bytes, b->nbytes))
				continue;
			if (gpa2 >= c->sv->npages)
				return soft_code_single(c);
			if (!cpage_get(c, gpa2)) {
				soft_code_flush(c);
				return soft_code_single(c);
			}
		}
		jc_put(c, b->ops);
		return b->ops;
	}
	/* decode; lines are claimed before their bytes are read */
	const u8 *host = (const u8 *)(uintptr_t)(lin + e->addend);
	unsigned avail = (unsigned)(MEM_PAGE - off);

	code_claim(c, pfn, line_mask(off, avail < 512 ? avail : 512));
	nops = soft_trans(c, host, avail < 512 ? avail : 512, 64, tmp, &bytes, &crossing);
	u8 buf[16] = { 0 };

	if (crossing) {
		unsigned n = code_fetch(c, lin, buf, &gpa2);

		if (gpa2 >= c->sv->npages)
			return soft_code_single(c);
		nops = soft_trans(c, buf, n, 1, tmp, &bytes, &crossing);
		crossing = true;
	}
	b = soft_arena_alloc(c, sizeof(*b) + nops * sizeof(struct op));
	if (!b) {
		soft_code_flush(c);
		p = cpage_get(c, pfn);
		b = soft_arena_alloc(c, sizeof(*b) + nops * sizeof(struct op));
		if (!b)
			abort(); /* an empty arena holds any block */
	}
	c->n_blocks++;
	memcpy(b->ops, tmp, nops * sizeof(struct op));
	b->off = (u16)off;
	b->mode = mode;
	b->crossing = crossing;
	b->nbytes = (u8)(crossing ? bytes : 0);
	memcpy(b->bytes, buf, 15);
	b->next = p->bucket[off >> 6];
	p->bucket[off >> 6] = (u32)((u8 *)b - c->arena);
	if (crossing) {
		/* the second page gets a cpage too, so that code_drop() of it forgets the jumps
		 * here */
		struct cpage *p2 = cpage_get(c, gpa2);

		if (!p2) {
			soft_code_flush(c);
			return soft_code_single(c);
		}
	}
	jc_put(c, b->ops);
	return b->ops;
}
