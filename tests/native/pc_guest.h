/* pc_guest.h - a machine `pc` on the real /dev/kvm with a small guest program of ours in it.
 *
 * The host half builds the product's own machine (devices/pc.c: controllers, PCI, virtio, serial),
 * without a kernel, and enters a program of guest_code.c in 64-bit ring 3 on every vCPU. Every
 * vector 0x20-0xff has a handler that counts it in memory, ends it (LAPIC; 8259 pair for
 * 0x20-0x2f), and goes back with all registers as they were. The program and the test talk through
 * struct pcg_params and struct pcg_report, both in guest memory.
 * Why ring 3 and the roundabout way back from a handler: see guest.h and guest_code.c.
 */
#ifndef TESTS_NATIVE_PC_GUEST_H
#define TESTS_NATIVE_PC_GUEST_H

#include <stdint.h>

#include "devices/machine_config.h"
#include "guest.h"
#include "hypervisor-core/machine.h"

#define PCG_RAM		 (64 * MIB)
#define PCG_TSS		 0x20000u /* 128 bytes a vCPU */
#define PCG_IO_BITMAP	 0x28000u /* 8 KiB of zeroes */
#define PCG_STUBS	 0x30000u /* 16 bytes a vector */
#define PCG_COMMON	 0x32000u /* what the stubs jump to */
#define PCG_TRAMPOLINE	 0x33000u /* ring 3: the last step back */
#define PCG_PARAMS	 0x2f0000u
#define PCG_REPORT	 0x300000u
#define PCG_COUNTERS	 0x310000u /* 8 bytes a vector */
#define PCG_CPUS	 0x320000u /* 64 bytes a vCPU */
#define PCG_RING0	 0x400000u /* 2 KiB of handler stack a vCPU */
#define PCG_STACKS	 0x600000u /* growing down, 4 KiB a vCPU */
#define PCG_RINGS	 0x700000u
#define PCG_BUFFERS	 0x800000u
#define PCG_REARM_VECTOR 0xefu

/* Offsets are known to the assembly in guest_code.c. */
struct pcg_params {
	uint64_t ack_mmio;  /* 0: vector 0x70's handler reads one byte here before the end */
	uint64_t ack_port;  /* 8: or writes one byte to this port */
	uint64_t tsc_rearm; /* 16: PCG_REARM_VECTOR sets the TSC deadline this far ahead */
	uint64_t arg[8];
	uint64_t vcpus;
};

struct pcg_report {
	volatile uint64_t stage; /* the program's own; PCG_DONE at its end */
	volatile uint64_t fail;	 /* line of guest_code.c that saw something wrong */
	volatile uint64_t seen;	 /* what it saw */
	volatile uint64_t value[16];
	volatile uint8_t bytes[512];
};

#define PCG_DONE 0xd0d0u

/* The programs (guest_code.c). Each runs on every vCPU with its number. */
void pcg_idle(uint64_t cpu);   /* counts in PCG_CPUS; vCPU 0 switches the local APIC on */
void pcg_serial(uint64_t cpu); /* echoes COM1 by interrupt, swapping case, until ESC */
void pcg_blk(uint64_t cpu);    /* arg: requests, bytes each, first sector of the planted data */
void pcg_net(uint64_t cpu);    /* arg: frames; echoes each with its bytes inverted */
void pcg_rng(uint64_t cpu);    /* four requests of 64 bytes into report->bytes */
void pcg_timers(uint64_t cpu); /* arg 0: enum pcg_timer; arg 1: period in its own units */
void pcg_ipi(uint64_t cpu);    /* arg: rounds; every vCPU sends to the next one */
void pcg_sipi(uint64_t cpu);   /* vCPU 0 wakes all others by INIT and SIPI */
void pcg_dirty(uint64_t cpu);  /* writes the pages named in a list of 64-bit page numbers */

enum pcg_timer { PCG_PIT_IOAPIC, PCG_PIT_PIC, PCG_LAPIC_PERIODIC, PCG_LAPIC_ONESHOT, PCG_TSC };

typedef void pcg_program(uint64_t cpu);

/* pcg_new() - build it; @cfg's memory, vcpus and boot are filled in. Not started. */
struct guest *pcg_new(pcg_program *p, unsigned vcpus, struct machine_config *cfg);
struct guest *pcg_new_opts(pcg_program *p, unsigned vcpus, struct machine_config *cfg,
			   bool dirty_ring);
/* pcg_empty() - the same machine with nothing entered: to load a saved state into. */
struct guest *pcg_empty(unsigned vcpus, struct machine_config *cfg);
struct pcg_params *pcg_params(struct guest *g);
struct pcg_report *pcg_report(struct guest *g);
uint64_t pcg_count(struct guest *g, unsigned vector);
uint64_t pcg_cpu(struct guest *g, unsigned cpu);
/* pcg_done() - run the loop until the program is done; fails with its line where it failed. */
void pcg_done(struct guest *g);
/* pcg_check() - fail the test where the program, or the VM, has failed. */
void pcg_check(struct guest *g);

#endif
