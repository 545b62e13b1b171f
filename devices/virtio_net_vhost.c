/* virtio_net_vhost.c - a virtio-net device whose rings the host's kernel serves.
 *
 * All pairs or none. A ring runs in the kernel from DRIVER_OK until a reset, a pause for a save, or
 * the control queue's choice of fewer pairs; net_vhost_sync() looks at what should be and makes it
 * so, and everything else calls that. Interrupts go from the kernel straight into the VM (irqfd)
 * while the ring's MSI-X vector is live; else by an eventfd of ours to the I/O thread, which knows
 * of masks, pending bits and INTx.
 * Should the kernel refuse a ring, the device falls back to virtio_net.c with the rings as they
 * stand: the guest does not see it.
 * Threading: the I/O thread, while the machine lock's holder waits. Trust: see vhost_net.h.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/overflow.h"
#include "devices/virtio_net_impl.h"

static bool net_vhost_wanted(const struct net_pair *p, unsigned ring)
{
	const struct net_dev *d = p->dev;
	const struct virtq *q = &d->vd.vq[2 * p->index + ring];

	return p->vh && d->started && !d->quiet && p->enabled && p->kick[ring] >= 0 && q->ready &&
	       !q->broken;
}

static void net_vhost_called(void *arg, int fd, uint32_t events)
{
	struct net_pair *p = arg;
	struct virtq *q = &p->dev->vd.vq[2 * p->index + (fd == p->call_w[1].fd)];
	uint64_t n;

	if (read(fd, &n, sizeof(n)) == (ssize_t)sizeof(n) && q->ready)
		q->notify(q->notify_arg, q);
}

static void net_vhost_failed(void *arg, int fd, uint32_t events)
{
	struct net_pair *p = arg;
	uint64_t n;

	if (read(fd, &n, sizeof(n)) == (ssize_t)sizeof(n))
		virtio_needs_reset(&p->dev->vd, "malformed frame or buffer");
}

/* Where the kernel shall signal ring @ring now. -errno where there is no descriptor for it. */
static int net_vhost_call_fd(struct net_pair *p, unsigned ring)
{
	int fd = virtio_queue_irq_fd(&p->dev->vd, 2 * p->index + ring);
	struct loop_fd *w = &p->call_w[ring];
	int ret;

	if (fd >= 0 || w->fd >= 0)
		return fd >= 0 ? fd : w->fd;
	fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (fd < 0)
		return -errno;
	ret = loop_fd_add(iothread_loop(p->dev->io), w, fd, EPOLLIN, net_vhost_called, p);
	if (ret < 0) {
		close(fd);
		return ret;
	}
	return fd;
}

static int net_vhost_start(struct net_pair *p, unsigned ring)
{
	struct net_dev *d = p->dev;
	int call = net_vhost_call_fd(p, ring), ret = 0;

	if (call < 0)
		return call;
	if (p->error_w.fd < 0)
		ret = loop_fd_add(iothread_loop(d->io), &p->error_w, vhost_net_error_fd(p->vh),
				  EPOLLIN, net_vhost_failed, p);
	return ret < 0 ? ret
		       : vhost_net_start(p->vh, ring, &d->vd.vq[2 * p->index + ring],
					 d->vd.features, p->tap, p->kick[ring], call);
}

static void net_vhost_drop(struct net_pair *p)
{
	if (!p->vh)
		return;
	for (unsigned r = 0; r < 2; r++) {
		int fd = p->call_w[r].fd;

		vhost_net_stop(p->vh, r, &p->dev->vd.vq[2 * p->index + r]);
		loop_fd_del(&p->call_w[r]);
		close_fd(&fd);
	}
	loop_fd_del(&p->error_w);
	vhost_net_free(p->vh);
	p->vh = NULL;
}

static void net_vhost_give_up(struct net_dev *d, const char *why)
{
	log_warn("%s: vhost-net does not serve it (%s); its frames go through this process",
		 d->vd.id, why);
	snprintf(d->backend, sizeof(d->backend), "tap: vhost-net failed: %s", why);
	for (unsigned i = 0; i < d->npairs; i++) {
		struct net_pair *p = &d->pair[i];

		net_vhost_drop(p);
		for (unsigned r = 0; r < 2; r++)
			if (p->kick[r] >= 0 && net_ring_watch(p, r) < 0)
				virtio_needs_reset(&d->vd, "its tap cannot be watched");
		net_pair_go(p);
	}
}

void net_vhost_sync(struct net_dev *d)
{
	for (unsigned i = 0; i < d->npairs; i++)
		for (unsigned r = 0; r < 2; r++) {
			struct net_pair *p = &d->pair[i];
			bool wanted = net_vhost_wanted(p, r);
			int ret = 0;

			if (wanted == vhost_net_runs(p->vh, r))
				continue;
			if (wanted)
				ret = net_vhost_start(p, r);
			else
				vhost_net_stop(p->vh, r, &d->vd.vq[2 * i + r]);
			if (ret < 0) {
				net_vhost_give_up(d, strerror(-ret));
				return;
			}
		}
}

void net_vhost_irq(struct net_pair *p, unsigned ring)
{
	int fd, ret;

	if (!vhost_net_runs(p->vh, ring))
		return;
	fd = net_vhost_call_fd(p, ring);
	ret = fd < 0 ? fd : vhost_net_call(p->vh, ring, fd);
	if (ret < 0)
		net_vhost_give_up(p->dev, strerror(-ret));
}

void net_vhost_open(struct net_dev *d, const struct mc_nic *nic)
{
	char why[100] = "this host has no /dev/vhost-net";
	unsigned n = 0;

	while (n < d->npairs && nic->vhost_fds[n] >= 0) {
		d->pair[n].vh = vhost_net_new(d->vd.vm, nic->vhost_fds[n], why, sizeof(why));
		if (!d->pair[n].vh)
			break;
		n++;
	}
	if (n == d->npairs && d->offloads) {
		snprintf(d->backend, sizeof(d->backend), "vhost");
		return;
	}
	if (n == d->npairs)
		snprintf(why, sizeof(why), "its other end is no tap with a virtio header");
	snprintf(d->backend, sizeof(d->backend), "tap: %s", why);
	for (unsigned i = 0; i < d->npairs; i++) {
		int fd = d->pair[i].vh ? -1 : nic->vhost_fds[i];

		vhost_net_free(d->pair[i].vh);
		d->pair[i].vh = NULL;
		close_fd(&fd);
	}
}

void net_vhost_close(struct net_dev *d)
{
	for (unsigned i = 0; i < d->npairs; i++)
		net_vhost_drop(&d->pair[i]);
}
