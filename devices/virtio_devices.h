/* virtio_devices.h - constructors of the virtio devices, as a machine calls them.
 *
 * Each puts one device on @bus at the next free place and gives it to the VM (vm_device_add), which
 * frees it.
 * Descriptors and block devices inside the config are taken on success. Return: 0 or -errno with
 * @e.
 * Main thread, machine being built, no vCPU running.
 */
#ifndef DEVICES_VIRTIO_DEVICES_H
#define DEVICES_VIRTIO_DEVICES_H

#include <stddef.h>

#include "common/err.h"
#include "devices/machine_config.h"

struct vm;
struct pci_bus;

int virtio_blk_new(struct vm *vm, struct pci_bus *bus, const struct mc_disk *disk, struct err *e);
/* virtio_blk_resize() - grow disk @name of a running guest, which is told by an interrupt. Main
 * thread, machine lock not held: it waits for the file system. */
int virtio_blk_resize(struct vm *vm, const char *name, uint64_t size_bytes, struct err *e);
/* virtio_blk_backend() - what disk @name of the guest is on, for jobs that change what lies below it
 * (storage/live.h); it stays the device's. NULL: there is no such disk. */
struct blockdev *virtio_blk_backend(struct vm *vm, const char *name);
/* virtio_blk_limit() - from now on disk @name ("": each disk) does at most @iops requests and @bps
 * bytes a second; 0: as many as it can. Main thread. */
int virtio_blk_limit(struct vm *vm, const char *name, uint64_t iops, uint64_t bps, struct err *e);
int virtio_net_new(struct vm *vm, struct pci_bus *bus, const struct mc_nic *nic, struct err *e);
/* virtio_net_backends() - "net0 vhost; net1 tap: why": who moves each port's frames, for people. */
void virtio_net_backends(struct vm *vm, char *text, size_t size);
int virtio_rng_new(struct vm *vm, struct pci_bus *bus, struct err *e);
/* One device with @nports ports; port 0 is a console (hvc0). */
int virtio_console_new(struct vm *vm, struct pci_bus *bus, const struct mc_port *ports,
		       unsigned nports, struct err *e);

#endif
