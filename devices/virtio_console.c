/* virtio_console.c - the virtio console with many ports (virtio 1.2, 5.3): up to 128 on one device.
 *
 * Queues: 0 and 1 are port 0's receive and transmit, 2 and 3 the control pair, then a pair a port.
 * Port 0 is a console (hvc0); the others are consoles too (hvcN), so that each can carry a login.
 * Each leads to a chardev.
 * All on the main thread or a vCPU thread, with the machine lock held: bytes are few, and chardevs
 * want that lock.
 * Trust: control messages name a port that may not exist and come in any order; they are checked,
 * never trusted.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/overflow.h"
#include "devices/chardev.h"
#include "devices/virtio.h"
#include "devices/virtio_devices.h"
#include "hypervisor-core/vm.h"

enum { F_SIZE = 0, F_MULTIPORT = 1 };
enum {
	CTL_DEVICE_READY = 0,
	CTL_DEVICE_ADD = 1,
	CTL_PORT_READY = 3,
	CTL_CONSOLE_PORT = 4,
	CTL_RESIZE = 5,
	CTL_PORT_OPEN = 6,
	CTL_PORT_NAME = 7,
};

#define CON_CTL_RX 2u
#define CON_CTL_TX 3u
#define CON_BATCH  128u /* requests a kick */

struct con_ctl {
	uint32_t id;
	uint16_t event, value;
};

/* A control message that waits for a buffer of the driver. */
struct con_msg {
	struct con_msg *next;
	struct con_ctl ctl;
	char name[32];
};

struct con_port {
	struct con *con;
	unsigned index;
	char name[32];
	struct chardev *chr;
	bool guest_open, host_open;
	bool stalled;	  /* output waits for the far side */
	uint32_t tx_done; /* bytes of the stalled request already taken */
};

struct con {
	struct virtio_dev vd; /* first */
	unsigned nports;
	struct con_port *ports;
	struct con_msg *queue, **tail;
	unsigned queued;
	struct virtq_req *scratch;
	struct vm_timer again;
	bool quiet; /* being saved: guest memory is left alone */
	uint64_t in_bytes, out_bytes;
};

static struct con *con_of(struct virtio_dev *d)
{
	return container_of(d, struct con, vd);
}

static unsigned con_rx_queue(unsigned port)
{
	return port ? 2 * port + 2 : 0;
}

static unsigned con_tx_queue(unsigned port)
{
	return con_rx_queue(port) + 1;
}

static bool con_queue_ready(struct con *c, unsigned q)
{
	return c->vd.driver_ok && !c->quiet && q < c->vd.nqueues && c->vd.vq[q].ready &&
	       !c->vd.vq[q].broken;
}

static struct virtq_req *con_scratch(struct con *c)
{
	if (!c->scratch)
		c->scratch = malloc(sizeof(*c->scratch));
	return c->scratch;
}

static void con_broken(struct con *c)
{
	virtio_needs_reset(&c->vd, "malformed request");
}

/* ---- control ---- */

static void con_ctl_flush(struct con *c)
{
	struct virtq *q = &c->vd.vq[CON_CTL_RX];
	struct virtq_req *r = con_scratch(c);
	int ret = 0;

	if (!r || !con_queue_ready(c, CON_CTL_RX))
		return;
	while (c->queue && (ret = virtq_pop(q, r)) > 0) {
		struct con_msg *m = c->queue;
		uint64_t n = virtq_copy_in(r, 0, &m->ctl, sizeof(m->ctl));

		if (m->ctl.event == CTL_PORT_NAME)
			n += virtq_copy_in(r, sizeof(m->ctl), m->name, strlen(m->name));
		virtq_push(q, r, (uint32_t)n);
		c->queue = m->next;
		if (!c->queue)
			c->tail = &c->queue;
		c->queued--;
		free(m);
	}
	virtq_interrupt(q);
	if (ret < 0)
		con_broken(c);
	else if (c->queue && virtq_kicks_on(q))
		vm_timer_set(&c->again, vm_now_ns(c->vd.vm) + 1);
}

static void con_ctl_send(struct con *c, unsigned port, uint16_t event, uint16_t value)
{
	struct con_msg *m;

	/* a driver that takes none of them gets no more: 4 a port are due in a normal life */
	if (c->queued >= 8 * c->nports + 64)
		return;
	m = calloc(1, sizeof(*m));
	if (!m)
		return;
	m->ctl = (struct con_ctl){ port, event, value };
	if (event == CTL_PORT_NAME)
		memcpy(m->name, c->ports[port].name, sizeof(m->name));
	*c->tail = m;
	c->tail = &m->next;
	c->queued++;
}

static void con_ctl_drop(struct con *c)
{
	while (c->queue) {
		struct con_msg *m = c->queue;

		c->queue = m->next;
		free(m);
	}
	c->tail = &c->queue;
	c->queued = 0;
}

static void con_ctl_received(struct con *c, const struct con_ctl *ctl)
{
	struct con_port *p;

	if (ctl->event == CTL_DEVICE_READY) {
		for (unsigned i = 0; ctl->value && i < c->nports; i++)
			con_ctl_send(c, i, CTL_DEVICE_ADD, 1);
		return;
	}
	if (ctl->id >= c->nports)
		return;
	p = &c->ports[ctl->id];
	if (ctl->event == CTL_PORT_READY && ctl->value) {
		con_ctl_send(c, p->index, CTL_CONSOLE_PORT, 1);
		con_ctl_send(c, p->index, CTL_PORT_NAME, 1);
		/* a console is always open on our side: what nobody reads is kept as scrollback */
		con_ctl_send(c, p->index, CTL_PORT_OPEN, 1);
	} else if (ctl->event == CTL_PORT_OPEN) {
		p->guest_open = ctl->value;
		if (p->guest_open)
			chardev_room(p->chr);
	}
}

static void con_ctl_kick(struct con *c)
{
	struct virtq *q = &c->vd.vq[CON_CTL_TX];
	struct virtq_req *r = con_scratch(c);
	int ret = 0;
	unsigned n = 0;

	if (!r || !con_queue_ready(c, CON_CTL_TX))
		return;
	while (n < CON_BATCH && (ret = virtq_pop(q, r)) > 0) {
		struct con_ctl ctl;

		if (virtq_copy_out(r, 0, &ctl, sizeof(ctl)) == sizeof(ctl))
			con_ctl_received(c, &ctl);
		virtq_push(q, r, 0);
		n++;
	}
	virtq_interrupt(q);
	if (ret < 0)
		con_broken(c);
	else if (virtq_kicks_on(q))
		vm_timer_set(&c->again, vm_now_ns(c->vd.vm) + 1);
	con_ctl_flush(c);
}

/* ---- data ---- */

/* Guest to far side. What the far side does not take leaves the request on the ring. */
static void con_transmit(struct con_port *p)
{
	struct con *c = p->con;
	unsigned qi = con_tx_queue(p->index);
	struct virtq *q = &c->vd.vq[qi];
	struct virtq_req *r = con_scratch(c);
	int ret = 0;
	unsigned n = 0;

	if (!r || p->stalled || !con_queue_ready(c, qi))
		return;
	while (n < CON_BATCH && !p->stalled && (ret = virtq_pop(q, r)) > 0) {
		uint64_t skip = p->tx_done;

		for (unsigned i = 0; i < r->nout && !p->stalled; i++) {
			const uint8_t *s = r->iov[i].iov_base;
			uint64_t len = r->iov[i].iov_len, cut = MIN(skip, len), taken;

			skip -= cut;
			if (cut == len)
				continue;
			taken = chardev_write(p->chr, s + cut, len - cut);
			p->tx_done += (uint32_t)taken;
			c->out_bytes += taken;
			p->stalled = taken < len - cut;
		}
		if (p->stalled) {
			virtq_unpop(q, r);
			break;
		}
		p->tx_done = 0;
		virtq_push(q, r, 0);
		n++;
	}
	virtq_interrupt(q);
	if (ret < 0)
		con_broken(c);
	else if (!p->stalled && virtq_kicks_on(q))
		vm_timer_set(&c->again, vm_now_ns(c->vd.vm) + 1);
}

static size_t con_room(void *owner)
{
	struct con_port *p = owner;
	struct con *c = p->con;
	unsigned qi = con_rx_queue(p->index);

	struct virtq_req *r = con_scratch(c);
	int ret = 0;

	/* as much as the next buffer takes; chardev asks again after each. Buffers of no bytes go
	 * back at once. */
	if (!r || !con_queue_ready(c, qi))
		return 0;
	for (unsigned n = 0; n < CON_BATCH && (ret = virtq_pop(&c->vd.vq[qi], r)) > 0; n++) {
		if (r->in_bytes) {
			virtq_unpop(&c->vd.vq[qi], r);
			return (size_t)MIN(r->in_bytes, 65536u);
		}
		virtq_push(&c->vd.vq[qi], r, 0);
	}
	if (ret < 0)
		con_broken(c);
	return 0;
}

static void con_receive(void *owner, const uint8_t *bytes, size_t len)
{
	struct con_port *p = owner;
	struct con *c = p->con;
	struct virtq *q = &c->vd.vq[con_rx_queue(p->index)];
	struct virtq_req *r = con_scratch(c);
	int ret = 0;

	if (!r)
		return;
	while (len && (ret = virtq_pop(q, r)) > 0) {
		uint64_t n = virtq_copy_in(r, 0, bytes, len);

		virtq_push(q, r, (uint32_t)n);
		bytes += n;
		len -= n;
		c->in_bytes += n;
	}
	virtq_interrupt(q);
	virtq_kicks_on(q);
	if (ret < 0)
		con_broken(c);
}

static void con_connected(void *owner, bool on)
{
	struct con_port *p = owner;

	p->host_open = on;
}

static void con_writable(void *owner)
{
	struct con_port *p = owner;

	if (!p->stalled)
		return;
	p->stalled = false;
	con_transmit(p);
}

static const struct chardev_owner_ops con_chr_ops = {
	.room = con_room,
	.receive = con_receive,
	.connected = con_connected,
	.writable = con_writable,
};

/* ---- as a virtio device ---- */

static void con_kick(struct virtio_dev *vd, unsigned q)
{
	struct con *c = con_of(vd);
	unsigned port = q < 2 ? 0 : (q - 2) / 2;

	if (q == CON_CTL_TX)
		con_ctl_kick(c);
	else if (q == CON_CTL_RX)
		con_ctl_flush(c);
	else if (port < c->nports && q == con_tx_queue(port))
		con_transmit(&c->ports[port]);
	else if (port < c->nports)
		chardev_room(c->ports[port].chr);
}

static void con_again(void *arg)
{
	struct con *c = arg;

	con_ctl_kick(c);
	for (unsigned i = 0; i < c->nports; i++)
		con_transmit(&c->ports[i]);
}

static uint64_t con_features(struct virtio_dev *vd)
{
	return 1ull << F_MULTIPORT;
}

static void con_config_read(struct virtio_dev *vd, uint32_t off, void *buf, uint32_t len)
{
	struct {
		uint16_t cols, rows;
		uint32_t max_nr_ports, emerg_wr;
	} cfg = { .max_nr_ports = con_of(vd)->nports };

	if (range_within(off, len, sizeof(cfg)))
		memcpy(buf, (const uint8_t *)&cfg + off, len);
}

static void con_reset(struct virtio_dev *vd)
{
	struct con *c = con_of(vd);

	vm_timer_stop(&c->again);
	con_ctl_drop(c);
	for (unsigned i = 0; i < c->nports; i++) {
		c->ports[i].guest_open = c->ports[i].stalled = false;
		c->ports[i].tx_done = 0;
	}
	free(c->scratch);
	c->scratch = NULL;
}

static void con_driver_ok(struct virtio_dev *vd)
{
	con_again(con_of(vd));
	for (unsigned i = 0; i < con_of(vd)->nports; i++)
		chardev_room(con_of(vd)->ports[i].chr);
}

static void con_quiesce(struct virtio_dev *vd, void (*done)(void *), void *arg)
{
	con_of(vd)->quiet = true;
	done(arg);
}

static void con_unquiesce(struct virtio_dev *vd)
{
	con_of(vd)->quiet = false;
	con_driver_ok(vd);
}

static void con_save(struct virtio_dev *vd, struct state_writer *w)
{
	struct con *c = con_of(vd);

	for (unsigned i = 0; i < c->nports; i++)
		state_put_u64(w, (uint16_t)(0x100 + i),
			      c->ports[i].guest_open | (uint64_t)c->ports[i].tx_done << 32);
	/* messages the driver has not fetched yet */
	uint16_t tag = 0x1000;

	for (struct con_msg *m = c->queue; m; m = m->next, tag++)
		state_put_u64(w, tag,
			      m->ctl.id | (uint64_t)m->ctl.event << 32 |
				  (uint64_t)m->ctl.value << 48);
}

static int con_load(struct virtio_dev *vd, const struct state_reader *r, struct err *e)
{
	struct con *c = con_of(vd);
	uint64_t v;

	for (unsigned i = 0; i < c->nports; i++) {
		v = state_get_u64_or(r, (uint16_t)(0x100 + i), 0);
		c->ports[i].guest_open = v & 1;
		c->ports[i].tx_done = (uint32_t)(v >> 32);
	}
	for (uint16_t tag = 0x1000; state_get_u64(r, tag, &v) == 0 && tag < 0x3000; tag++)
		if ((uint32_t)v < c->nports)
			con_ctl_send(c, (uint32_t)v, (uint16_t)(v >> 32), (uint16_t)(v >> 48));
	return 0;
}

static void con_destroy(struct virtio_dev *vd)
{
	struct con *c = con_of(vd);

	con_ctl_drop(c);
	for (unsigned i = 0; c->ports && i < c->nports; i++)
		if (c->ports[i].chr)
			chardev_free(c->ports[i].chr);
	free(c->ports);
	free(c->scratch);
	free(c);
}

static unsigned con_stats(struct virtio_dev *vd, const char **names, uint64_t *values, unsigned max)
{
	if (max < 2)
		return 0;
	names[0] = "in_bytes";
	values[0] = con_of(vd)->in_bytes;
	names[1] = "out_bytes";
	values[1] = con_of(vd)->out_bytes;
	return 2;
}

static const struct virtio_ops con_ops = {
	.virtio_id = VIRTIO_ID_CONSOLE,
	.pci_class = 0x078000,
	.features = con_features,
	.config_read = con_config_read,
	.kick = con_kick,
	.driver_ok = con_driver_ok,
	.reset = con_reset,
	.save = con_save,
	.load = con_load,
	.quiesce = con_quiesce,
	.unquiesce = con_unquiesce,
	.destroy = con_destroy,
	.stats = con_stats,
};

int virtio_console_new(struct vm *vm, struct pci_bus *bus, const struct mc_port *ports,
		       unsigned nports, struct err *e)
{
	struct con *c;
	int r = 0;

	if (!nports || nports > MC_CONSOLES_MAX)
		return err_set(e, EINVAL, "too-many-ports",
			       "guest %s: %u console ports; 1 to %u are possible", vm->name, nports,
			       MC_CONSOLES_MAX);
	c = calloc(1, sizeof(*c));
	if (!c || !(c->ports = calloc(nports, sizeof(*c->ports)))) {
		free(c);
		return err_set(e, ENOMEM, "no-memory", "guest %s: out of memory", vm->name);
	}
	c->vd.ops = &con_ops;
	c->vd.vm = vm;
	c->tail = &c->queue;
	c->nports = nports;
	snprintf(c->vd.id, sizeof(c->vd.id), "virtio-console0");
	c->vd.nqueues = 2 * nports + 2;
	c->vd.queue_size_max = 32;
	vm_timer_init(vm, &c->again, con_again, c);
	r = virtio_pci_new(vm, bus, &c->vd, e);
	if (r < 0) {
		con_destroy(&c->vd);
		return r;
	}
	for (unsigned i = 0; i < nports; i++) {
		struct con_port *p = &c->ports[i];

		*p = (struct con_port){ .con = c, .index = i };
		memcpy(p->name, ports[i].name, sizeof(p->name));
		p->chr = chardev_new(vm, p->name, &ports[i].chr, &con_chr_ops, p, e);
		if (!p->chr)
			return e && e->num ? -e->num
					   : -ENOMEM; /* the device is the VM's: freed with it */
	}
	return 0;
}
