/* machine_config.h - everything a machine is built from, by value and by fd.
 * Filled by vmd-guest from the wire (vmd/proto.def: guest_config). No host paths in here: names are
 * labels for people. fds are taken by build() on success.
 */
#ifndef DEVICES_MACHINE_CONFIG_H
#define DEVICES_MACHINE_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "devices/chardev.h"
#include "hypervisor-core/load/load.h"
#include "storage/blockdev.h"

#define MC_DISKS_MAX	64
#define MC_NICS_MAX	32
#define MC_SERIALS_MAX	4   /* 16550A on ISA */
#define MC_CONSOLES_MAX 128 /* virtio-console ports */

/* ENOSPC and EIO: stop the guest, or hand it the error */
enum io_error_policy { IO_ERROR_PAUSE, IO_ERROR_REPORT };

struct mc_disk {
	char name[32];	     /* "vda" */
	char serial[21];     /* virtio-blk ID, 20 bytes */
	struct blockdev *bd; /* opened by vmd-guest; taken */
	unsigned queues;     /* 0 = one a vCPU, at most 8 */
	bool read_only;
	enum io_error_policy on_error;
};

struct mc_nic {
	char name[32]; /* "net0" */
	uint8_t mac[6];
	int tap_fds[8]; /* one a queue pair; IFF_VNET_HDR set; taken */
	unsigned queues;
	int vhost_fds[8]; /* /dev/vhost-net, or -1 */
	uint16_t mtu;	  /* 0 = 1500 */
};

struct mc_port {
	char name[32]; /* "serial0", or the virtio port's name */
	struct chardev_config chr;
};

struct machine_config {
	uint64_t memory_bytes;
	int memory_fd;	       /* sealed template to map privately, or -1 */
	uint32_t memory_flags; /* MEM_HUGETLB, MEM_THP */
	unsigned vcpus;
	unsigned ndisks, nnics, nserials, nconsoles;
	struct mc_disk *disks;
	struct mc_nic *nics;
	struct mc_port *serials;
	struct mc_port *consoles;
	bool rng;	  /* virtio-rng from getrandom(2) */
	uint8_t uuid[16]; /* SMBIOS */
	uint8_t vmgenid[16];
	struct boot_config boot;
	const char *cmdline;
};

#endif
