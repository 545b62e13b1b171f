/* guest_code.c - what runs inside the guests of pc_guest.h: drivers of our own, in C.
 *
 * Everything here is in one section that is copied to guest memory as it is and runs at another
 * address: no global data, no string, no call out of the section, no vector register. A program
 * never returns. What goes wrong is told by the line number in report->fail.
 * Interrupt handlers run in ring 0, where a KVM without hardware support interprets, and knows of
 * the ways back to ring 3 only SYSEXIT, which costs two registers. So a handler puts RIP, RFLAGS,
 * RDX and RCX on the interrupted stack, below its red zone, and leaves to a few instructions in
 * ring 3 that take them from there. Interrupts are on again before that: on such a KVM POPF in ring 3
 * cannot switch them on, and another handler on top of the unfinished way back does no harm.
 * Specs: virtio 1.2 (2.7 split rings, 4.1 PCI), 16550 and 8254 data sheets, Intel SDM vol. 3, 10.
 */
#ifndef __clang__ /* which has no such pragmas; the lint build is not run */
#pragma GCC optimize("no-tree-vectorize,no-tree-loop-distribute-patterns,no-jump-tables")
#pragma GCC target("general-regs-only")
#endif

#include "pc_guest.h"

#define GUEST __attribute__((section("guest_text"), used, noinline, no_stack_protector))

#define LAPIC	   0xfee00000u
#define IOAPIC	   0xfec00000u
#define COM1	   0x3f8
#define VIRTIO_BAR 0xc8000000u /* where this driver puts 64-bit BARs that lie too high for it */

enum { V_COM1 = 0x44, V_PIT = 0x42, V_TIMER = 0x50, V_IPI = 0x51, V_QUEUE = 0x60 };

/* The handlers' common part; [rsp] = vector, RIP, CS, RFLAGS, RSP, SS. */
__asm__(
    ".pushsection guest_text,\"ax\",@progbits\n"
    ".globl pcg_common_start, pcg_common_end, pcg_tramp_start, pcg_tramp_end\n"
    "pcg_common_start:\n"
    "push %rax; push %rdx; push %rcx\n"
    "mov 24(%rsp), %rax\n"
    "lock incq 0x310000(,%rax,8)\n"
    "cmp $0xef, %rax; jne 1f\n"
    "rdtsc; shl $32, %rdx; or %rdx, %rax; add 0x2f0010, %rax\n"
    "mov %rax, %rdx; shr $32, %rdx; mov $0x6e0, %ecx; wrmsr\n"
    "1: cmpq $0x70, 24(%rsp); jne 3f; mov 0x2f0000, %rax; test %rax, %rax; jz 2f; mov (%rax), %al\n"
    "2: mov 0x2f0008, %rdx; test %rdx, %rdx; jz 3f; mov $1, %al; out %al, %dx\n"
    "3: mov 24(%rsp), %rax; cmp $0x30, %rax; jae 5f\n"
    "cmp $0x28, %rax; jb 4f; mov $0x20, %al; out %al, $0xa0\n"
    "4: mov $0x20, %al; out %al, $0x20; jmp 6f\n"
    "5: mov $0xfee000b0, %eax; movl $0, (%rax)\n"
    "6: mov 56(%rsp), %rax\n"
    "mov 32(%rsp), %rdx; mov %rdx, -136(%rax)\n"
    "mov 48(%rsp), %rdx; mov %rdx, -144(%rax)\n"
    "mov 8(%rsp), %rdx; mov %rdx, -152(%rax)\n"
    "mov (%rsp), %rdx; mov %rdx, -160(%rax)\n"
    "lea -160(%rax), %rcx\n"
    "mov 16(%rsp), %rax\n"
    "mov $0x33000, %edx\n"
    "sti; sysexitq\n"
    "pcg_common_end:\n"
    "pcg_tramp_start: pop %rcx; pop %rdx; popfq; ret $128\n"
    "pcg_tramp_end:\n"
    ".popsection\n");

static GUEST volatile struct pcg_params *g_params(void)
{
	return (volatile struct pcg_params *)(uintptr_t)PCG_PARAMS;
}

static GUEST struct pcg_report *g_report(void)
{
	return (struct pcg_report *)(uintptr_t)PCG_REPORT;
}

static GUEST uint64_t g_counter(unsigned vector)
{
	return __atomic_load_n((uint64_t *)(uintptr_t)(PCG_COUNTERS + 8 * vector),
			       __ATOMIC_SEQ_CST);
}

static GUEST __attribute__((noreturn)) void g_stop(uint64_t line, uint64_t seen)
{
	struct pcg_report *r = g_report();

	r->seen = seen;
	r->fail = line;
	if (!line)
		r->stage = PCG_DONE;
	for (;;)
		__asm__ volatile("pause");
}

#define g_check(cond, saw) \
	do { \
		if (!(cond)) \
			g_stop(__LINE__, (uint64_t)(saw)); \
	} while (0)

static GUEST void outb(uint16_t port, uint8_t v)
{
	__asm__ volatile("outb %0, %1" : : "a"(v), "d"(port));
}

static GUEST uint8_t inb(uint16_t port)
{
	uint8_t v;

	__asm__ volatile("inb %1, %0" : "=a"(v) : "d"(port));
	return v;
}

static GUEST void outl(uint16_t port, uint32_t v)
{
	__asm__ volatile("outl %0, %1" : : "a"(v), "d"(port));
}

static GUEST uint32_t inl(uint16_t port)
{
	uint32_t v;

	__asm__ volatile("inl %1, %0" : "=a"(v) : "d"(port));
	return v;
}

static GUEST void w8(uint64_t at, uint8_t v)
{
	*(volatile uint8_t *)(uintptr_t)at = v;
}

static GUEST uint8_t r8(uint64_t at)
{
	return *(volatile uint8_t *)(uintptr_t)at;
}

static GUEST void w16(uint64_t at, uint16_t v)
{
	*(volatile uint16_t *)(uintptr_t)at = v;
}

static GUEST uint16_t r16(uint64_t at)
{
	return *(volatile uint16_t *)(uintptr_t)at;
}

static GUEST void w32(uint64_t at, uint32_t v)
{
	*(volatile uint32_t *)(uintptr_t)at = v;
}

static GUEST uint32_t r32(uint64_t at)
{
	return *(volatile uint32_t *)(uintptr_t)at;
}

static GUEST void w64(uint64_t at, uint64_t v)
{
	*(volatile uint64_t *)(uintptr_t)at = v;
}

/* ---- controllers ---- */

static GUEST void lapic_on(void)
{
	w32(LAPIC + 0xf0, 0x1ff);
}

/* An I/O APIC pin, edge-triggered or level-triggered, to vCPU 0. */
static GUEST void ioapic_pin(unsigned pin, unsigned vector, unsigned level)
{
	w32(IOAPIC, 0x11 + 2 * pin);
	w32(IOAPIC + 0x10, 0);
	w32(IOAPIC, 0x10 + 2 * pin);
	w32(IOAPIC + 0x10, vector | level << 15);
}

static GUEST void pic_on(uint8_t mask)
{
	outb(0x20, 0x11);
	outb(0x21, 0x20);
	outb(0x21, 4);
	outb(0x21, 1);
	outb(0xa0, 0x11);
	outb(0xa1, 0x28);
	outb(0xa1, 2);
	outb(0xa1, 1);
	outb(0xa1, 0xff);
	outb(0x21, mask);
}

/* ---- idle ---- */

GUEST void pcg_idle(uint64_t cpu)
{
	uint64_t at = PCG_CPUS + 64 * cpu;

	lapic_on();
	if (cpu == 0 && g_params()->arg[0]) { /* 8259 pair too, and pin 16 level-triggered */
		pic_on((uint8_t)g_params()->arg[1]);
		ioapic_pin(16, 0x70, 1);
	}
	for (;;)
		__asm__ volatile("lock incq (%0)" : : "r"(at) : "memory");
}

/* ---- serial ---- */

GUEST void pcg_serial(uint64_t cpu)
{
	struct pcg_report *r = g_report();
	uint64_t seen = 0;

	lapic_on();
	ioapic_pin(4, V_COM1, 0);
	outb(COM1 + 7, 0x5a);
	g_check(inb(COM1 + 7) == 0x5a, inb(COM1 + 7));
	outb(COM1 + 3, 0x83);
	outb(COM1 + 0, 1);
	outb(COM1 + 1, 0);
	outb(COM1 + 3, 3);
	outb(COM1 + 2, 7);
	g_check((inb(COM1 + 2) & 0xc0) == 0xc0, inb(COM1 + 2)); /* FIFOs are on */
	outb(COM1 + 4, 0x0b);
	outb(COM1 + 1, 1);
	outb(COM1, '>');
	for (;;) {
		uint64_t now = g_counter(V_COM1);

		if (now == seen) {
			__asm__ volatile("pause");
			continue;
		}
		seen = now;
		r->value[0] = seen;
		while (inb(COM1 + 5) & 1) {
			uint8_t c = inb(COM1);

			if (c == 27)
				g_stop(0, 0);
			while (!(inb(COM1 + 5) & 0x20))
				;
			outb(COM1, c ^ 0x20);
		}
	}
}

/* ---- virtio over PCI ---- */

struct gv {
	uint64_t common, notify, isr, device, msix;
	uint32_t notify_mul, slot, features;
};

struct gv_queue {
	uint64_t desc, avail, used, bell;
	uint16_t size, next, seen;
	uint16_t vector;
	uint64_t irqs;
};

static GUEST uint32_t pci_get(uint32_t slot, uint32_t off)
{
	outl(0xcf8, 0x80000000u | slot << 11 | off);
	return inl(0xcfc);
}

static GUEST void pci_put(uint32_t slot, uint32_t off, uint32_t v)
{
	outl(0xcf8, 0x80000000u | slot << 11 | off);
	outl(0xcfc, v);
}

/* Where BAR @n lies; one above 4 GiB is moved below, which our page tables reach. */
static GUEST uint64_t pci_bar(uint32_t slot, uint32_t n)
{
	uint32_t low = pci_get(slot, 0x10 + 4 * n), high = 0;

	if ((low & 7) == 4)
		high = pci_get(slot, 0x14 + 4 * n);
	if (high) {
		low = VIRTIO_BAR + slot * 0x100000 + n * 0x10000;
		pci_put(slot, 0x10 + 4 * n, low);
		pci_put(slot, 0x14 + 4 * n, 0);
	}
	return low & ~0xfu;
}

static GUEST void gv_cap(struct gv *g, uint32_t at)
{
	uint32_t head = pci_get(g->slot, at), type = head >> 24;
	uint32_t bar = pci_get(g->slot, at + 4) & 0xff, off = pci_get(g->slot, at + 8);

	if ((head & 0xff) == 0x11) { /* MSI-X: its table */
		uint32_t table = pci_get(g->slot, at + 4);

		g->msix = pci_bar(g->slot, table & 7) + (table & ~7u);
		pci_put(g->slot, at, head | 0x80000000u);
		return;
	}
	if ((head & 0xff) != 9 || bar > 5)
		return;
	if (type == 1)
		g->common = pci_bar(g->slot, bar) + off;
	else if (type == 2) {
		g->notify = pci_bar(g->slot, bar) + off;
		g->notify_mul = pci_get(g->slot, at + 16);
	} else if (type == 3)
		g->isr = pci_bar(g->slot, bar) + off;
	else if (type == 4)
		g->device = pci_bar(g->slot, bar) + off;
}

static GUEST void gv_open(struct gv *g, uint32_t id, uint32_t want)
{
	g->common = g->notify = g->isr = g->device = g->msix = 0;
	g->notify_mul = 0;
	for (g->slot = 0; g->slot < 32; g->slot++)
		if (pci_get(g->slot, 0) == ((0x1040 + id) << 16 | 0x1af4))
			break;
	g_check(g->slot < 32, id);
	for (uint32_t at = pci_get(g->slot, 0x34) & 0xfc; at; at = pci_get(g->slot, at) >> 8 & 0xfc)
		gv_cap(g, at);
	pci_put(g->slot, 4, 6);
	g_check(g->common && g->notify && g->isr && g->device && g->msix, g->slot);
	w8(g->common + 0x14, 0);
	w8(g->common + 0x14, 3);
	w32(g->common, 0);
	g->features = r32(g->common + 4) & want;
	w32(g->common, 1);
	g_check(r32(g->common + 4) & 1, r32(g->common + 4)); /* VERSION_1 */
	w32(g->common + 8, 0);
	w32(g->common + 12, g->features);
	w32(g->common + 8, 1);
	w32(g->common + 12, 1);
	w8(g->common + 0x14, 11);
	g_check(r8(g->common + 0x14) == 11, r8(g->common + 0x14));
}

static GUEST void gv_queue_open(struct gv *g, struct gv_queue *q, uint16_t n, uint16_t size)
{
	uint64_t mem = PCG_RINGS + 0x4000u * n, entry = g->msix + 16 * n;

	q->desc = mem;
	q->avail = mem + 0x1000;
	q->used = mem + 0x2000;
	q->size = size;
	q->next = q->seen = 0;
	q->vector = (uint16_t)(V_QUEUE + n);
	q->irqs = 0;
	w32(entry, LAPIC);
	w32(entry + 4, 0);
	w32(entry + 8, q->vector);
	w32(entry + 12, 0);
	w16(g->common + 0x16, n);
	g_check(r16(g->common + 0x18) >= size, r16(g->common + 0x18));
	w16(g->common + 0x18, size);
	w16(g->common + 0x1a, n);
	g_check(r16(g->common + 0x1a) == n, r16(g->common + 0x1a));
	q->bell = g->notify + (uint64_t)r16(g->common + 0x1e) * g->notify_mul;
	w64(g->common + 0x20, q->desc);
	w64(g->common + 0x28, q->avail);
	w64(g->common + 0x30, q->used);
	w16(g->common + 0x1c, 1);
}

/* Descriptor @at of a chain; @flags 1 = another follows, 2 = the device writes. */
static GUEST void gv_desc(struct gv_queue *q, uint16_t at, uint64_t addr, uint32_t len,
			  uint16_t flags)
{
	uint64_t d = q->desc + 16u * (at % q->size);

	w64(d, addr);
	w32(d + 8, len);
	w16(d + 12, flags);
	w16(d + 14, (uint16_t)((at + 1) % q->size));
}

static GUEST void gv_offer(struct gv_queue *q, uint16_t head)
{
	uint16_t idx = r16(q->avail + 2);

	w16(q->avail + 4 + 2u * (idx % q->size), (uint16_t)(head % q->size));
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	w16(q->avail + 2, (uint16_t)(idx + 1));
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static GUEST void gv_kick(struct gv_queue *q, uint16_t n)
{
	w16(q->bell, n);
}

/* Until one more is used. An interrupt must have come since the queue was last seen empty: one may
 * tell of several. Returns its length. */
static GUEST uint32_t gv_wait(struct gv_queue *q, uint16_t *head)
{
	for (;;) {
		uint64_t irqs = g_counter(q->vector);

		if (r16(q->used + 2) == q->seen)
			q->irqs = irqs;
		else if (irqs > q->irqs)
			break;
		__asm__ volatile("pause");
	}
	uint64_t e = q->used + 4 + 8u * (q->seen % q->size);

	q->seen++;
	if (head)
		*head = (uint16_t)r32(e);
	return r32(e + 4);
}

/* ---- virtio-blk ---- */

static GUEST uint8_t blk_pattern(uint64_t request, uint64_t i)
{
	return (uint8_t)(request * 7 + i * 13 + (i >> 9));
}

/* Type 0 read, 1 write, 4 flush. Strictly one at a time, each by its own interrupt. */
static GUEST void blk_do(struct gv_queue *q, uint32_t type, uint64_t sector, uint64_t buf,
			 uint32_t len)
{
	uint64_t head = PCG_BUFFERS, status = PCG_BUFFERS + 16, before = g_counter(q->vector);
	uint16_t at = q->next;

	w32(head, type);
	w32(head + 4, 0);
	w64(head + 8, sector);
	w8(status, 0xff);
	gv_desc(q, at, head, 16, 1);
	if (len)
		gv_desc(q, (uint16_t)(at + 1), buf, len, type == 0 ? 3 : 1);
	gv_desc(q, (uint16_t)(at + 1 + !!len), status, 1, 2);
	q->next = (uint16_t)((at + 2 + !!len) % q->size);
	gv_offer(q, at);
	gv_kick(q, 0);
	while (g_counter(q->vector) == before)
		__asm__ volatile("pause");
	g_check(r16(q->used + 2) == (uint16_t)(q->seen + 1), r16(q->used + 2));
	q->seen++;
	g_check(r8(status) == 0, r8(status) | type << 8);
}

GUEST void pcg_blk(uint64_t cpu)
{
	volatile struct pcg_params *p = g_params();
	uint64_t buf = PCG_BUFFERS + 0x1000, n = p->arg[0], len = p->arg[1], planted = p->arg[2];
	struct gv_queue q;
	struct gv g;

	lapic_on();
	gv_open(&g, 2, 1 << 9);
	g_check(g.features, 0); /* flush is offered */
	gv_queue_open(&g, &q, 0, 16);
	w8(g.common + 0x14, 15);
	g_report()->value[0] = r32(g.device); /* capacity */
	blk_do(&q, 0, planted, buf, (uint32_t)len);
	for (uint64_t i = 0; i < len; i++)
		g_check(r8(buf + i) == blk_pattern(1000, i), i);
	for (uint64_t k = 0; k < n; k++) {
		for (uint64_t i = 0; i < len; i++)
			w8(buf + i, blk_pattern(k, i));
		blk_do(&q, 1, k * len / 512, buf, (uint32_t)len);
		if (k % 8 == 7)
			blk_do(&q, 4, 0, 0, 0);
		g_report()->stage = k + 1;
	}
	blk_do(&q, 4, 0, 0, 0);
	for (uint64_t k = n; k-- > 0;) {
		blk_do(&q, 0, k * len / 512, buf, (uint32_t)len);
		for (uint64_t i = 0; i < len; i++)
			g_check(r8(buf + i) == blk_pattern(k, i), k << 32 | i);
	}
	g_report()->value[1] = g_counter(q.vector);
	g_stop(0, 0);
}

/* ---- virtio-net ---- */

GUEST void pcg_net(uint64_t cpu)
{
	uint64_t rxbuf = PCG_BUFFERS, txbuf = PCG_BUFFERS + 0x20000, n = g_params()->arg[0];
	struct gv_queue rx, tx;
	struct gv g;

	lapic_on();
	gv_open(&g, 1, 1 << 5);
	for (unsigned i = 0; i < 6; i++)
		g_report()->bytes[i] = r8(g.device + i);
	gv_queue_open(&g, &rx, 0, 16);
	gv_queue_open(&g, &tx, 1, 16);
	w8(g.common + 0x14, 15);
	for (uint16_t i = 0; i < 8; i++) {
		gv_desc(&rx, i, rxbuf + 0x1000u * i, 0x1000, 2);
		gv_offer(&rx, i);
	}
	gv_kick(&rx, 0);
	g_report()->stage = 1;
	for (uint64_t k = 0; k < n; k++) {
		uint16_t head = 0;
		uint32_t len = gv_wait(&rx, &head);
		uint64_t from = rxbuf + 0x1000u * head;

		g_check(len > 12 && len <= 1526 && head < 8, len);
		for (uint32_t i = 0; i < len; i++)
			w8(txbuf + i, i < 12 ? 0 : (uint8_t)~r8(from + i));
		gv_desc(&tx, 0, txbuf, len, 0);
		gv_offer(&tx, 0);
		gv_kick(&tx, 1);
		gv_wait(&tx, &head);
		gv_offer(&rx, (uint16_t)((from - rxbuf) >> 12));
		gv_kick(&rx, 0);
		g_report()->value[0] = k + 1;
	}
	g_report()->value[1] = g_counter(rx.vector);
	g_report()->value[2] = g_counter(tx.vector);
	g_stop(0, 0);
}

/* ---- virtio-rng ---- */

GUEST void pcg_rng(uint64_t cpu)
{
	struct gv_queue q;
	struct gv g;

	lapic_on();
	gv_open(&g, 4, 0);
	gv_queue_open(&g, &q, 0, 8);
	w8(g.common + 0x14, 15);
	for (uint16_t k = 0; k < 4; k++) {
		uint16_t head;

		gv_desc(&q, k, PCG_BUFFERS + 64u * k, 64, 2);
		gv_offer(&q, k);
		gv_kick(&q, 0);
		g_check(gv_wait(&q, &head) == 64 && head == k, head);
	}
	for (unsigned i = 0; i < 256; i++)
		g_report()->bytes[i] = r8(PCG_BUFFERS + i);
	g_stop(0, 0);
}

/* ---- timers ---- */

static GUEST void pit_start(uint16_t count)
{
	outb(0x43, 0x34);
	outb(0x40, (uint8_t)count);
	outb(0x40, (uint8_t)(count >> 8));
}

GUEST void pcg_timers(uint64_t cpu)
{
	volatile struct pcg_params *p = g_params();
	uint64_t at = PCG_CPUS + 64 * cpu;

	lapic_on();
	switch (p->arg[0]) {
	case PCG_PIT_IOAPIC:
		w32(LAPIC + 0x350, 0x10000);
		ioapic_pin(2, V_PIT, 0);
		pit_start((uint16_t)p->arg[1]);
		break;
	case PCG_PIT_PIC:
		w32(LAPIC + 0x350, 0x700); /* the 8259 pair comes in at LINT0 */
		pic_on(0xfe);
		pit_start((uint16_t)p->arg[1]);
		break;
	case PCG_LAPIC_PERIODIC:
	case PCG_LAPIC_ONESHOT:
		w32(LAPIC + 0x3e0, 0xb);
		w32(LAPIC + 0x320, V_TIMER | (p->arg[0] == PCG_LAPIC_PERIODIC ? 1u << 17 : 0));
		w32(LAPIC + 0x380, (uint32_t)p->arg[1]);
		break;
	case PCG_TSC: /* the handler arms it: WRMSR is for ring 0 */
		w32(LAPIC + 0x320, PCG_REARM_VECTOR | 2u << 17);
		w32(LAPIC + 0x310, 0);
		w32(LAPIC + 0x300, 0x40000 | PCG_REARM_VECTOR);
		break;
	}
	g_report()->stage = 1;
	for (;;)
		__asm__ volatile("lock incq (%0)" : : "r"(at) : "memory");
}

/* ---- several CPUs ---- */

/* A token goes round by IPI: vCPU k waits for its own vector, then sends vCPU k+1's. */
GUEST void pcg_ipi(uint64_t cpu)
{
	volatile struct pcg_params *p = g_params();
	uint64_t n = p->vcpus, rounds = p->arg[0];
	unsigned mine = (unsigned)(0x80 + cpu), next = (unsigned)((cpu + 1) % n);
	uint64_t *ready = (uint64_t *)(uintptr_t)(PCG_CPUS + 64 * 256);

	lapic_on();
	g_check(r32(LAPIC + 0x20) >> 24 == cpu, r32(LAPIC + 0x20));
	__atomic_fetch_add(ready, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(ready, __ATOMIC_SEQ_CST) < n)
		__asm__ volatile("pause");
	for (uint64_t k = 0; k < rounds; k++) {
		if (cpu || k)
			while (g_counter(mine) < k + (cpu != 0))
				__asm__ volatile("pause");
		w64(PCG_CPUS + 64 * cpu, k + 1);
		w32(LAPIC + 0x310, next << 24);
		w32(LAPIC + 0x300, 0x4000 | (0x80 + next));
	}
	if (cpu == 0) {
		while (g_counter(mine) < rounds)
			__asm__ volatile("pause");
		/* all others, by shorthand */
		w32(LAPIC + 0x300, 0xc4000 | 0x7f);
		while (g_counter(0x7f) < n - 1)
			__asm__ volatile("pause");
		g_stop(0, 0);
	}
	for (;;)
		__asm__ volatile("pause");
}

GUEST void pcg_sipi(uint64_t cpu)
{
	lapic_on();
	for (unsigned to = 1; to < g_params()->vcpus; to++) {
		w32(LAPIC + 0x310, to << 24);
		w32(LAPIC + 0x300, 0x4500);
		w32(LAPIC + 0x310, to << 24);
		w32(LAPIC + 0x300, 0x4608); /* real mode at 0x8000 */
	}
	g_stop(0, 0);
}

/* ---- dirty pages ---- */

GUEST void pcg_dirty(uint64_t cpu)
{
	uint64_t *list = (uint64_t *)(uintptr_t)(PCG_BUFFERS - 0x10000);
	struct pcg_report *r = g_report();

	for (;;) {
		uint64_t want = __atomic_load_n(&list[0], __ATOMIC_SEQ_CST);

		if (want == 0 || want == r->stage) {
			__asm__ volatile("pause");
			continue;
		}
		for (uint64_t i = 0; i < list[1]; i++)
			w64(list[2 + i] << 12, want);
		r->stage = want;
	}
}
