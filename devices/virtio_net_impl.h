/* virtio_net_impl.h - what virtio_net.c (configuration, frames between tap and rings) and
 * virtio_net_vhost.c (the kernel moves them) share. All functions here run on the I/O thread, while
 * whoever holds the machine lock waits, but for open and close.
 */
#ifndef DEVICES_VIRTIO_NET_IMPL_H
#define DEVICES_VIRTIO_NET_IMPL_H

#include <stdatomic.h>

#include "devices/iothread.h"
#include "devices/vhost_net.h"
#include "devices/virtio.h"
#include "devices/virtio_devices.h"
#include "hypervisor-core/vm.h"

#define NET_PAIRS_MAX	8u
#define NET_HDR		12u
#define NET_FRAME_MAX	(65535u + 14u + NET_HDR)
#define NET_BATCH	256u /* frames before others get their turn */
#define NET_NUM_BUFFERS 10u  /* offset of num_buffers in the header */

struct net_dev;

struct net_pair {
	struct net_dev *dev;
	unsigned index;
	int tap;
	struct loop_fd tap_w, rx_w, tx_w;
	bool rx_on, tx_on, enabled; /* enabled: the control queue's choice */
	bool tx_blocked;	    /* tap was full: wait until it is writable */
	int kick[2];		    /* doorbells of the receive and transmit ring; -1 not enabled */
	struct vhost_net *vh;	    /* the kernel serves this pair, or NULL: this file does */
	struct loop_fd call_w[2], error_w;
};

struct net_dev {
	struct virtio_dev vd; /* first */
	struct iothread *io;
	uint8_t mac[6];
	uint16_t mtu;
	unsigned npairs;
	bool offloads;			/* the taps are taps: TUNSETOFFLOAD works */
	bool mergeable, quiet, started; /* started: DRIVER_OK */
	struct net_pair pair[NET_PAIRS_MAX];
	struct virtq_req *req, *more; /* I/O thread, made at first use */
	uint8_t *bounce;
	char backend[128]; /* "vhost", or "tap: " and why not */
	_Atomic uint64_t rx_frames, tx_frames, rx_bytes, tx_bytes, rx_dropped, tx_dropped;
};

/* net_vhost_open() - let the kernel serve @d if it can, by the descriptors of @nic, which are taken
 * either way; d->backend tells. Main thread, machine being built. */
void net_vhost_open(struct net_dev *d, const struct mc_nic *nic);
void net_vhost_close(struct net_dev *d); /* I/O thread */
/* net_vhost_sync() - rings that should run do, others do not. Where the kernel refuses one, the
 * device goes on without it. */
void net_vhost_sync(struct net_dev *d);
void net_vhost_irq(struct net_pair *p, unsigned ring); /* its interrupt goes another way */
/* virtio_net.c: have an enabled ring served by the I/O thread. 0 or -errno. */
int net_ring_watch(struct net_pair *p, unsigned ring);
void net_pair_go(struct net_pair *p);

#endif
