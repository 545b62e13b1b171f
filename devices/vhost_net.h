/* vhost_net.h - one queue pair of a virtio-net device served by the host's kernel (/dev/vhost-net)
 * instead of the I/O thread: frames go from tap to ring with no process of ours in between.
 *
 * One of these per pair; ring 0 receives, 1 transmits. Once vhost_net_start() took a ring nobody
 * else touches it until vhost_net_stop() hands it back, with the index where it stands; the virtq
 * code goes on from there, so that reset, save and restore know nothing of vhost.
 * Threading: vhost_net_new() on the main thread while the machine is built (VHOST_SET_OWNER binds
 * to this process and is not in the guest's system call list later); all else on the I/O thread.
 * Trust: the kernel checks rings and descriptors against the memory table that we give it, which
 * holds guest RAM only; a ring that it gives up on is reported by vhost_net_error_fd().
 */
#ifndef DEVICES_VHOST_NET_H
#define DEVICES_VHOST_NET_H

#include <stdbool.h>
#include <stddef.h>

#include "devices/virtq.h"

struct vm;
struct vhost_net;

/* vhost_net_new() - @fd: an open /dev/vhost-net, taken on success. NULL: it does not serve, @why
 * says why not. */
struct vhost_net *vhost_net_new(struct vm *vm, int fd, char *why, size_t size);
void vhost_net_free(struct vhost_net *v); /* stops what runs; the rings' indices are lost */
/* vhost_net_start() - take ring @ring of @q over: frames of @tap, kicks by @kick, interrupts by
 * @call. Features are the driver's choice. 0 or -errno, the ring still ours then. */
int vhost_net_start(struct vhost_net *v, unsigned ring, struct virtq *q, uint64_t features, int tap,
		    int kick, int call);
/* vhost_net_stop() - waits for the frame under way; @q stands where the kernel stopped. */
void vhost_net_stop(struct vhost_net *v, unsigned ring, struct virtq *q);
bool vhost_net_runs(const struct vhost_net *v, unsigned ring);
/* vhost_net_call() - from now on interrupts go to @call. */
int vhost_net_call(struct vhost_net *v, unsigned ring, int call);
int vhost_net_error_fd(const struct vhost_net *v); /* an eventfd: a ring is malformed */

#endif
