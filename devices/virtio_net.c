/* virtio_net.c - the virtio network device (virtio 1.2, 5.1) on tap queues: many queues, offloads,
 * mergeable buffers.
 *
 * Frames go between the tap and guest memory with no copy of ours: transmit is one writev(2) from
 * the chain, receive one readv(2) into the first buffer with a bounce behind it, which is copied on
 * only for frames larger than a buffer.
 * The tap's own header (IFF_VNET_HDR, 12 bytes) is virtio's: checksums and segmentation stay with
 * whoever does them best. Where the host has vhost-net its kernel serves the rings instead
 * (virtio_net_vhost.c), and this file only tells it when.
 * Threading: all queues on the VM's I/O thread; configuration and control queue under the machine
 * lock.
 * Trust: the guest's header is checked by the kernel's tun driver; sizes and segments by virtq. A
 * frame that tap refuses is dropped and counted: nothing that a backend does ends the guest.
 */
#include <errno.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/overflow.h"
#include "common/text.h"
#include "devices/virtio_net_impl.h"

enum {
	F_CSUM = 0,
	F_GUEST_CSUM = 1,
	F_MTU = 3,
	F_MAC = 5,
	F_GUEST_TSO4 = 7,
	F_GUEST_TSO6 = 8,
	F_GUEST_ECN = 9,
	F_HOST_TSO4 = 11,
	F_HOST_TSO6 = 12,
	F_HOST_ECN = 13,
	F_MRG_RXBUF = 15,
	F_STATUS = 16,
	F_CTRL_VQ = 17,
	F_CTRL_RX = 18,
	F_MQ = 22,
};
enum { CTRL_RX = 0, CTRL_MAC = 1, CTRL_MAC_TABLE_SET = 0, CTRL_MQ = 4, CTRL_MQ_PAIRS_SET = 0 };

struct net_config {
	uint8_t mac[6];
	uint16_t status, max_pairs, mtu;
} __attribute__((packed));

static struct net_dev *net_of(struct virtio_dev *d)
{
	return container_of(d, struct net_dev, vd);
}

static void net_count(_Atomic uint64_t *c, uint64_t n)
{
	atomic_fetch_add_explicit(c, n, memory_order_relaxed);
}

static bool net_buffers(struct net_dev *d)
{
	if (!d->req)
		d->req = malloc(sizeof(*d->req));
	if (!d->more)
		d->more = malloc(sizeof(*d->more));
	if (!d->bounce)
		d->bounce = malloc(NET_FRAME_MAX);
	if (d->req && d->more && d->bounce)
		return true;
	virtio_needs_reset(&d->vd, "out of memory");
	return false;
}

/* ---- receive: tap to guest ---- */

static void net_tap_events(struct net_pair *p)
{
	uint32_t ev =
	    (p->rx_on ? (uint32_t)EPOLLIN : 0u) | (p->tx_blocked ? (uint32_t)EPOLLOUT : 0u);

	if (p->tap_w.fd >= 0)
		loop_fd_mod(&p->tap_w, p->dev->quiet ? 0 : ev);
}

static void net_set_num_buffers(struct virtq_req *first, uint16_t n)
{
	virtq_copy_in(first, NET_NUM_BUFFERS, &n, sizeof(n));
}

/* Give @len bytes, the tail of which lies in the bounce, to the guest. False: not enough buffers,
 * frame dropped. */
static bool net_deliver(struct net_dev *d, struct virtq *q, size_t len)
{
	uint64_t head = MIN(len, d->req->in_bytes), left = len - head, off = 0;
	uint16_t n = 1; /* buffers used */

	if (left && !d->mergeable)
		return false;
	/* all of a frame's buffers become visible by one index update, with the count in the first
	 */
	while (left) {
		uint64_t part;

		if (virtq_pop(q, d->more) <= 0) {
			while (--n)
				virtq_unpop(q, d->more);
			return false;
		}
		part = virtq_copy_in(d->more, 0, d->bounce + off, left);
		virtq_mark(d->more, part);
		virtq_put(q, n, d->more->head, (uint32_t)part);
		off += part;
		left -= part;
		n++;
	}
	net_set_num_buffers(d->req, n);
	virtq_mark(d->req, head);
	virtq_put(q, 0, d->req->head, (uint32_t)head);
	virtq_publish(q, n);
	return true;
}

static void net_receive(struct net_pair *p)
{
	struct net_dev *d = p->dev;
	struct virtq *q = &d->vd.vq[2 * p->index];
	struct iovec iov[VIRTQ_SEG_MAX + 1];
	int ret = 1;

	if (!p->rx_on || d->quiet || !net_buffers(d))
		return;
	virtq_kicks_off(q);
	for (unsigned n = 0; n < NET_BATCH; n++) {
		ssize_t got;

		ret = virtq_pop(q, d->req);
		if (ret == 0) {
			/* no buffers: sleep until the driver adds some, unless it just did */
			if (virtq_kicks_on(q)) {
				virtq_kicks_off(q);
				continue;
			}
			p->rx_on = false;
			net_tap_events(p);
			break;
		}
		if (ret < 0)
			break;
		if (d->req->nout || d->req->in_bytes < NET_HDR) {
			ret = -EPROTO;
			break;
		}
		memcpy(iov, d->req->iov, d->req->nin * sizeof(iov[0]));
		iov[d->req->nin] = (struct iovec){ d->bounce, NET_FRAME_MAX };
		got = readv(p->tap, iov, (int)d->req->nin + 1);
		if (got < (ssize_t)NET_HDR) {
			int why = errno;

			virtq_unpop(q, d->req);
			if (got >= 0)
				net_count(&d->rx_dropped, 1);
			else if (why != EAGAIN && why != EINTR)
				log_debug("%s: tap: %s", d->vd.id, strerror(why));
			break;
		}
		if (!net_deliver(d, q, (size_t)got)) {
			virtq_unpop(q, d->req);
			net_count(&d->rx_dropped, 1);
			continue;
		}
		net_count(&d->rx_frames, 1);
		net_count(&d->rx_bytes, (uint64_t)got - NET_HDR);
	}
	virtq_interrupt(q);
	if (ret < 0) {
		p->rx_on = false;
		net_tap_events(p);
		virtio_needs_reset(&d->vd, "malformed receive buffer");
	}
}

/* ---- transmit: guest to tap ---- */

static void net_transmit(struct net_pair *p)
{
	struct net_dev *d = p->dev;
	struct virtq *q = &d->vd.vq[2 * p->index + 1];
	int ret = 0;

	if (!p->tx_on || !d->started || d->quiet || p->tx_blocked || !net_buffers(d))
		return;
	do {
		unsigned n = 0;

		virtq_kicks_off(q);
		while ((ret = virtq_pop(q, d->req)) > 0) {
			ssize_t sent;

			if (d->req->out_bytes < NET_HDR || !d->req->nout) {
				ret = -EPROTO;
				break;
			}
			sent = d->req->out_bytes > NET_FRAME_MAX
				   ? -1
				   : writev(p->tap, d->req->iov, (int)d->req->nout);
			if (sent < 0 && d->req->out_bytes <= NET_FRAME_MAX && errno == EAGAIN) {
				virtq_unpop(q, d->req);
				p->tx_blocked = true;
				net_tap_events(p);
				break;
			}
			if (sent < 0) {
				net_count(&d->tx_dropped, 1);
			} else {
				net_count(&d->tx_frames, 1);
				net_count(&d->tx_bytes, d->req->out_bytes - NET_HDR);
			}
			virtq_push(q, d->req, 0);
			if (++n == NET_BATCH) {
				/* others get their turn; the doorbell brings us back */
				uint64_t one = 1;

				if (write(p->tx_w.fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
					log_debug("%s: doorbell: %s", d->vd.id, strerror(errno));
				virtq_interrupt(q);
				return;
			}
		}
	} while (ret == 0 && virtq_kicks_on(q));
	virtq_interrupt(q);
	if (ret < 0) {
		p->tx_on = false;
		virtio_needs_reset(&d->vd, "malformed frame");
	}
}

/* ---- events on the I/O thread ---- */

static void net_tap_event(void *arg, int fd, uint32_t events)
{
	struct net_pair *p = arg;

	if (events & EPOLLOUT) {
		p->tx_blocked = false;
		net_tap_events(p);
		net_transmit(p);
	}
	if (events & EPOLLIN)
		net_receive(p);
	else if (events & (EPOLLERR | EPOLLHUP))
		/* the tap is gone (its interface was deleted): a cable pulled, not an error of the
		 * guest's */
		loop_fd_del(&p->tap_w);
}

static void net_rx_kicked(void *arg, int fd, uint32_t events)
{
	struct net_pair *p = arg;
	uint64_t n;

	if (read(fd, &n, sizeof(n)) != (ssize_t)sizeof(n) || p->rx_on)
		return;
	p->rx_on = p->enabled && p->dev->started && p->dev->vd.vq[2 * p->index].ready;
	net_tap_events(p);
	net_receive(p);
}

static void net_tx_kicked(void *arg, int fd, uint32_t events)
{
	struct net_pair *p = arg;
	uint64_t n;

	if (read(fd, &n, sizeof(n)) == (ssize_t)sizeof(n))
		net_transmit(p);
}

/* ---- configuration ---- */

static int net_tap_offload(struct net_dev *d, unsigned flags)
{
	int r = 0;

	for (unsigned i = 0; i < d->npairs; i++)
		if (ioctl(d->pair[i].tap, TUNSETOFFLOAD, (unsigned long)flags) < 0)
			r = -errno;
	return r;
}

static uint64_t net_features(struct virtio_dev *vd)
{
	const struct net_dev *d = net_of(vd);
	uint64_t f = 1ull << F_MAC | 1ull << F_MRG_RXBUF | 1ull << F_STATUS | 1ull << F_CTRL_VQ |
		     1ull << F_CTRL_RX;

	if (d->mtu)
		f |= 1ull << F_MTU;
	if (d->npairs > 1)
		f |= 1ull << F_MQ;
	if (d->offloads)
		f |= 1ull << F_CSUM | 1ull << F_GUEST_CSUM | 1ull << F_GUEST_TSO4 |
		     1ull << F_GUEST_TSO6 | 1ull << F_GUEST_ECN | 1ull << F_HOST_TSO4 |
		     1ull << F_HOST_TSO6 | 1ull << F_HOST_ECN;
	return f;
}

static void net_features_set(struct virtio_dev *vd, uint64_t f)
{
	struct net_dev *d = net_of(vd);
	unsigned flags = 0;

	d->mergeable = f >> F_MRG_RXBUF & 1;
	if (f >> F_GUEST_CSUM & 1) {
		flags |= TUN_F_CSUM;
		flags |= f >> F_GUEST_TSO4 & 1 ? TUN_F_TSO4 : 0;
		flags |= f >> F_GUEST_TSO6 & 1 ? TUN_F_TSO6 : 0;
		flags |= (flags & (TUN_F_TSO4 | TUN_F_TSO6)) && (f >> F_GUEST_ECN & 1)
			     ? TUN_F_TSO_ECN
			     : 0;
	}
	if (d->offloads && net_tap_offload(d, flags) < 0)
		log_warn("%s: the tap refused offloads 0x%x", vd->id, flags);
}

static void net_config_read(struct virtio_dev *vd, uint32_t off, void *buf, uint32_t len)
{
	const struct net_dev *d = net_of(vd);
	struct net_config c = { .status = 1, .max_pairs = (uint16_t)d->npairs, .mtu = d->mtu };

	memcpy(c.mac, d->mac, sizeof(c.mac));
	if (range_within(off, len, sizeof(c)))
		memcpy(buf, (const uint8_t *)&c + off, len);
}

void net_pair_go(struct net_pair *p)
{
	struct net_dev *d = p->dev;

	p->rx_on = !p->vh && p->enabled && d->started && d->vd.vq[2 * p->index].ready;
	net_tap_events(p);
	net_transmit(p);
}

static void net_start(void *arg)
{
	struct net_dev *d = arg;

	d->started = true;
	for (unsigned i = 0; i < d->npairs; i++)
		net_pair_go(&d->pair[i]);
	net_vhost_sync(d);
}

static void net_driver_ok(struct virtio_dev *vd)
{
	iothread_call(net_of(vd)->io, net_start, net_of(vd));
}

struct net_call {
	struct net_dev *d;
	unsigned q;
	int fd, result;
};

int net_ring_watch(struct net_pair *p, unsigned ring)
{
	struct loop *l = iothread_loop(p->dev->io);
	int ret = 0;

	if (p->tap_w.fd < 0)
		ret = loop_fd_add(l, &p->tap_w, p->tap, 0, net_tap_event, p);
	if (!ret && ring == 0) {
		if (p->rx_w.fd < 0)
			ret = loop_fd_add(l, &p->rx_w, p->kick[0], EPOLLIN, net_rx_kicked, p);
	} else if (!ret) {
		if (p->tx_w.fd < 0)
			ret = loop_fd_add(l, &p->tx_w, p->kick[1], EPOLLIN, net_tx_kicked, p);
		p->tx_on = true;
	}
	net_tap_events(p);
	return ret;
}

static void net_queue_attach(void *arg)
{
	struct net_call *c = arg;
	struct net_pair *p = &c->d->pair[c->q / 2];

	p->kick[c->q % 2] = c->fd;
	c->result = 0;
	if (p->vh)
		net_vhost_sync(c->d);
	else
		c->result = net_ring_watch(p, c->q % 2);
}

static void net_queue_enable(struct virtio_dev *vd, unsigned q)
{
	struct net_call c = { .d = net_of(vd), .q = q };

	if (q >= 2 * c.d->npairs)
		return; /* the control queue */
	c.fd = virtio_queue_doorbell_fd(vd, q);
	if (c.fd < 0) {
		virtio_needs_reset(vd, "no descriptor for a doorbell");
		return;
	}
	iothread_call(c.d->io, net_queue_attach, &c);
	if (c.result < 0)
		virtio_needs_reset(vd, "its tap cannot be watched");
}

static void net_pairs_apply(void *arg)
{
	struct net_call *c = arg;
	struct net_dev *d = c->d;

	for (unsigned i = 0; i < d->npairs; i++) {
		struct net_pair *p = &d->pair[i];
		bool on = i < c->q;
		struct ifreq ifr = { .ifr_flags =
					 (short)(on ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE) };

		if (on == p->enabled)
			continue;
		p->enabled = false;
		net_vhost_sync(d); /* a queue that the tap lets go of has no reader */
		if (d->npairs > 1 && d->offloads && ioctl(p->tap, TUNSETQUEUE, &ifr) < 0)
			log_debug("%s: queue %u: %s", d->vd.id, i, strerror(errno));
		p->enabled = on;
		net_pair_go(p);
	}
	net_vhost_sync(d);
}

static void net_pairs_set(struct net_dev *d, unsigned n)
{
	struct net_call c = { .d = d, .q = n };

	iothread_call(d->io, net_pairs_apply, &c);
}

/* One control request. Return: bytes of answer. */
static uint32_t net_control(struct net_dev *d, const struct virtq_req *r)
{
	uint8_t hdr[2], ack = 1;
	uint16_t pairs;

	if (virtq_copy_out(r, 0, hdr, 2) == 2) {
		if (hdr[0] == CTRL_RX || (hdr[0] == CTRL_MAC && hdr[1] == CTRL_MAC_TABLE_SET)) {
			/* a tap behind a bridge gets what is for it; filters are not needed */
			ack = 0;
		} else if (hdr[0] == CTRL_MQ && hdr[1] == CTRL_MQ_PAIRS_SET &&
			   virtq_copy_out(r, 2, &pairs, 2) == 2 && pairs >= 1 &&
			   pairs <= d->npairs) {
			net_pairs_set(d, pairs);
			ack = 0;
		}
	}
	return (uint32_t)virtq_copy_in(r, 0, &ack, 1);
}

/* The control queue, under the machine lock. */
static void net_kick(struct virtio_dev *vd, unsigned qi)
{
	struct net_dev *d = net_of(vd);
	struct virtq *q = &vd->vq[qi];
	struct virtq_req *r;
	int ret = 0;

	if (qi != 2 * d->npairs)
		return;
	r = malloc(sizeof(*r));
	if (!r)
		return;
	/* bounded: a driver that keeps adding does not hold the machine lock for ever; its next
	 * kick goes on */
	for (unsigned n = 0; n < NET_BATCH; n++) {
		ret = virtq_pop(q, r);
		if (ret > 0)
			virtq_push(q, r, net_control(d, r));
		else if (ret < 0 || !virtq_kicks_on(q))
			break;
	}
	free(r);
	virtq_interrupt(q);
	if (ret < 0)
		virtio_needs_reset(vd, "malformed control request");
}

static void net_detach(void *arg)
{
	struct net_dev *d = arg;

	d->started = d->quiet = false;
	net_vhost_sync(d);
	for (unsigned i = 0; i < d->npairs; i++) {
		struct net_pair *p = &d->pair[i];

		loop_fd_del(&p->tap_w);
		loop_fd_del(&p->rx_w);
		loop_fd_del(&p->tx_w);
		p->rx_on = p->tx_on = p->tx_blocked = false;
		p->kick[0] = p->kick[1] = -1;
	}
	free(d->req);
	free(d->more);
	free(d->bounce);
	d->req = d->more = NULL;
	d->bounce = NULL;
}

static void net_reset(struct virtio_dev *vd)
{
	struct net_dev *d = net_of(vd);

	if (!d->io)
		return;
	iothread_call(d->io, net_detach, d);
	net_pairs_set(d, 1);
	d->mergeable = false;
}

/* One queue alone (VIRTIO_F_RING_RESET); the tap keeps what comes meanwhile. */
static void net_queue_detach(void *arg)
{
	struct net_call *c = arg;
	struct net_pair *p = &c->d->pair[c->q / 2];

	p->kick[c->q % 2] = -1;
	net_vhost_sync(c->d);
	if (c->q % 2 == 0) {
		loop_fd_del(&p->rx_w);
		p->rx_on = false;
	} else {
		loop_fd_del(&p->tx_w);
		p->tx_on = p->tx_blocked = false;
	}
	net_tap_events(p);
}

static bool net_queue_reset(struct virtio_dev *vd, unsigned q)
{
	struct net_call c = { .d = net_of(vd), .q = q };

	if (q < 2 * c.d->npairs)
		iothread_call(c.d->io, net_queue_detach, &c);
	return true; /* no frame is in flight between two calls */
}

static void net_irq_io(void *arg)
{
	struct net_call *c = arg;

	net_vhost_irq(&c->d->pair[c->q / 2], c->q % 2);
}

static void net_irq_changed(struct virtio_dev *vd, unsigned q)
{
	struct net_call c = { .d = net_of(vd), .q = q };

	if (q < 2 * c.d->npairs && c.d->pair[q / 2].vh)
		iothread_call(c.d->io, net_irq_io, &c);
}

static void net_quiesce_io(void *arg)
{
	struct net_dev *d = arg;

	d->quiet = true;
	net_vhost_sync(d);
	for (unsigned i = 0; i < d->npairs; i++) {
		net_tap_events(&d->pair[i]);
		loop_fd_mod(&d->pair[i].rx_w, 0);
		loop_fd_mod(&d->pair[i].tx_w, 0);
	}
}

static void net_quiesce(struct virtio_dev *vd, void (*done)(void *), void *arg)
{
	iothread_call(net_of(vd)->io, net_quiesce_io, net_of(vd));
	done(arg);
}

static void net_unquiesce_io(void *arg)
{
	struct net_dev *d = arg;

	d->quiet = false;
	for (unsigned i = 0; i < d->npairs; i++) {
		net_tap_events(&d->pair[i]);
		loop_fd_mod(&d->pair[i].rx_w, EPOLLIN);
		loop_fd_mod(&d->pair[i].tx_w, EPOLLIN);
		net_transmit(&d->pair[i]);
	}
	net_vhost_sync(d);
}

static void net_unquiesce(struct virtio_dev *vd)
{
	iothread_call(net_of(vd)->io, net_unquiesce_io, net_of(vd));
}

static void net_save(struct virtio_dev *vd, struct state_writer *w)
{
	struct net_dev *d = net_of(vd);
	uint64_t pairs = 0;

	for (unsigned i = 0; i < d->npairs; i++)
		pairs += d->pair[i].enabled;
	state_put_u64(w, 1, pairs);
	state_put_bytes(w, 2, d->mac, sizeof(d->mac));
}

static int net_load(struct virtio_dev *vd, const struct state_reader *r, struct err *e)
{
	struct net_dev *d = net_of(vd);
	uint64_t pairs = state_get_u64_or(r, 1, 1);

	if (pairs < 1 || pairs > d->npairs)
		return err_set(e, EINVAL, "state-mismatch",
			       "device %s: the saved state has %llu queue pairs, this one %u",
			       vd->id, (unsigned long long)pairs, d->npairs);
	net_pairs_set(d, (unsigned)pairs);
	return 0;
}

static void net_close_io(void *arg)
{
	net_vhost_close(arg);
}

static void net_destroy(struct virtio_dev *vd)
{
	struct net_dev *d = net_of(vd);

	iothread_call(d->io, net_close_io, d);
	iothread_put(d->io);
	for (unsigned i = 0; i < d->npairs; i++)
		close_fd(&d->pair[i].tap);
	free(d);
}

static unsigned net_stats(struct virtio_dev *vd, const char **names, uint64_t *values, unsigned max)
{
	struct net_dev *d = net_of(vd);
	const struct {
		const char *name;
		_Atomic uint64_t *v;
	} all[] = { { "rx_frames", &d->rx_frames },   { "tx_frames", &d->tx_frames },
		    { "rx_bytes", &d->rx_bytes },     { "tx_bytes", &d->tx_bytes },
		    { "rx_dropped", &d->rx_dropped }, { "tx_dropped", &d->tx_dropped } };
	unsigned n = 0;

	if (d->pair[0].vh) /* the kernel counts: the tap's own statistics */
		return 0;
	for (; n < ARRAY_SIZE(all) && n < max; n++) {
		names[n] = all[n].name;
		values[n] = atomic_load_explicit(all[n].v, memory_order_relaxed);
	}
	return n;
}

static const struct virtio_ops net_ops = {
	.virtio_id = VIRTIO_ID_NET,
	.pci_class = 0x020000,
	.features = net_features,
	.features_set = net_features_set,
	.config_read = net_config_read,
	.queue_enable = net_queue_enable,
	.kick = net_kick,
	.driver_ok = net_driver_ok,
	.reset = net_reset,
	.queue_reset = net_queue_reset,
	.irq_changed = net_irq_changed,
	.save = net_save,
	.load = net_load,
	.quiesce = net_quiesce,
	.unquiesce = net_unquiesce,
	.destroy = net_destroy,
	.stats = net_stats,
};

void virtio_net_backends(struct vm *vm, char *text, size_t size)
{
	size_t n = 0;

	text[0] = 0;
	list_for_each (node, &vm->devices) {
		const struct device *dev = container_of(node, struct device, node);
		struct virtio_dev *vd = virtio_find(vm, dev->id, &net_ops);

		if (vd && n < size)
			n += (size_t)snprintf(text + n, size - n, "%s%s %s", n ? "; " : "", dev->id,
					      net_of(vd)->backend);
	}
}

int virtio_net_new(struct vm *vm, struct pci_bus *bus, const struct mc_nic *nic, struct err *e)
{
	struct net_dev *d;
	int r;

	if (!nic->queues || nic->queues > NET_PAIRS_MAX)
		return err_set(e, EINVAL, "bad-nic",
			       "network port %s: %u queues; 1 to %u are possible", nic->name,
			       nic->queues, NET_PAIRS_MAX);
	d = calloc(1, sizeof(*d));
	if (!d)
		return err_set(e, ENOMEM, "no-memory", "network port %s: out of memory", nic->name);
	d->vd.ops = &net_ops;
	d->vd.vm = vm;
	snprintf(d->vd.id, sizeof(d->vd.id), "%s", nic->name);
	memcpy(d->mac, nic->mac, sizeof(d->mac));
	d->mtu = nic->mtu;
	d->npairs = nic->queues;
	d->vd.nqueues = 2 * d->npairs + 1;
	d->vd.queue_size_max = 256;
	for (unsigned i = 0; i < NET_PAIRS_MAX; i++) {
		d->pair[i] =
		    (struct net_pair){ .dev = d,
				       .index = i,
				       .tap = i < d->npairs ? nic->tap_fds[i] : -1,
				       .enabled = i < d->npairs, /* as the kernel has them */
				       .kick = { -1, -1 } };
		d->pair[i].tap_w.fd = d->pair[i].rx_w.fd = d->pair[i].tx_w.fd = -1;
		d->pair[i].call_w[0].fd = d->pair[i].call_w[1].fd = d->pair[i].error_w.fd = -1;
	}
	for (unsigned i = 0; i < d->npairs; i++)
		fd_set_nonblock(d->pair[i].tap);
	d->offloads = net_tap_offload(d, 0) == 0;
	for (unsigned i = 0; d->offloads && i < d->npairs; i++) {
		int len = NET_HDR;

		/* a tap's header has 10 bytes until told otherwise; ours has num_buffers behind
		 * them */
		if (ioctl(d->pair[i].tap, TUNSETVNETHDRSZ, &len) < 0)
			log_warn("%s: the tap refused a header of %u bytes: %s", nic->name, NET_HDR,
				 strerror(errno));
	}
	d->io = iothread_get(vm, e);
	if (!d->io) {
		free(d);
		return e && e->num ? -e->num : -ENOMEM;
	}
	r = virtio_pci_new(vm, bus, &d->vd, e);
	if (r < 0) {
		iothread_put(d->io);
		free(d); /* the taps stay the caller's */
		return r;
	}
	net_pairs_set(d, 1); /* frames for queues that no driver serves would be lost */
	net_vhost_open(d, nic);
	return 0;
}
