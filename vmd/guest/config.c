/* config.c - settings and descriptors as they arrive from the daemon, message by message, until
 * g_build.
 *
 * Names are labels for people; every object arrives as a descriptor. Bounds are those of
 * machine_config.h. The disk graph is opened here, inside the jail: image headers are parsed by
 * this process and no other.
 * Ownership: a message's descriptors become ours on success; guest_config_free() closes what no
 * machine took.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/overflow.h"
#include "common/text.h"
#include "storage/lease.h"
#include "vmd/guest/guest.h"

struct config_layer {
	char driver[16], label[160];
	int fd;
	bool read_only;
};

struct config_disk {
	char name[32], serial[21];
	unsigned nlayers;
	struct config_layer *layers; /* top first */
	struct blk_spec *specs;	     /* nlayers, linked by backing */
	unsigned queues;
	enum io_error_policy on_error;
	enum blk_cache cache;
	bool discard, detect_zeroes;
	int lease_fd; /* -1: none needed, or taken */
	uint64_t lease_ms;
	struct lease_owner owner;
};

struct guest_config {
	bool have_base, have_boot;
	struct msg_g_config base;
	struct msg_g_boot boot;
	uint8_t vmgenid[16];
	int load_state_fd, load_memory_fd;
	unsigned ndisks, nnics, nserials, nconsoles;
	struct config_disk disks[MC_DISKS_MAX];
	struct mc_disk *mc_disks;
	struct mc_nic *nics;
	struct mc_port *serials, *consoles;
};

struct guest_config *guest_config_new(void)
{
	struct guest_config *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	c->base.kvm_fd = c->base.memory_fd = -1;
	c->boot.kernel_fd = c->boot.initrd_fd = -1;
	c->load_state_fd = c->load_memory_fd = -1;
	c->mc_disks = calloc(MC_DISKS_MAX, sizeof(*c->mc_disks));
	c->nics = calloc(MC_NICS_MAX, sizeof(*c->nics));
	c->serials = calloc(MC_SERIALS_MAX, sizeof(*c->serials));
	c->consoles = calloc(MC_CONSOLES_MAX, sizeof(*c->consoles));
	if (!c->mc_disks || !c->nics || !c->serials || !c->consoles) {
		guest_config_free(c);
		return NULL;
	}
	return c;
}

static void config_ports_close(struct mc_port *p, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		close_fd(&p[i].chr.fd);
}

void guest_config_free(struct guest_config *c)
{
	if (!c)
		return;
	for (unsigned i = 0; i < c->ndisks; i++) {
		struct config_disk *d = &c->disks[i];

		if (c->mc_disks[i].bd)
			blk_close(c->mc_disks[i].bd);
		for (unsigned j = 0; j < d->nlayers; j++)
			close_fd(&d->layers[j].fd);
		close_fd(&d->lease_fd);
		free(d->layers);
		free(d->specs);
	}
	for (unsigned i = 0; i < c->nnics; i++)
		for (unsigned q = 0; q < c->nics[i].queues; q++) {
			close_fd(&c->nics[i].tap_fds[q]);
			close_fd(&c->nics[i].vhost_fds[q]);
		}
	if (c->serials)
		config_ports_close(c->serials, c->nserials);
	if (c->consoles)
		config_ports_close(c->consoles, c->nconsoles);
	close_fd(&c->base.kvm_fd);
	close_fd(&c->base.memory_fd);
	close_fd(&c->boot.kernel_fd);
	close_fd(&c->boot.initrd_fd);
	close_fd(&c->load_state_fd);
	close_fd(&c->load_memory_fd);
	free(c->mc_disks);
	free(c->nics);
	free(c->serials);
	free(c->consoles);
	free(c);
}

int guest_config_base(struct guest *g, struct msg_g_config *m, struct err *e)
{
	struct guest_config *c = g->cfg;

	if (c->have_base)
		return err_set(e, EEXIST, "configured-twice",
			       "guest %s: its base configuration came twice", g->name);
	if (m->vcpus < 1 || m->vcpus > VM_VCPUS_MAX)
		return err_set(e, EINVAL, "vcpus-out-of-range",
			       "guest %s: %llu vCPUs; 1 to %u are possible", g->name,
			       (unsigned long long)m->vcpus, VM_VCPUS_MAX);
	if (m->vmgenid.len && m->vmgenid.len != sizeof(c->vmgenid))
		return err_set(e, EINVAL, "bad-vmgenid", "guest %s: a generation id has 16 bytes",
			       g->name);
	if (m->vmgenid.len)
		memcpy(c->vmgenid, m->vmgenid.p, m->vmgenid.len);
	c->base = *m;
	c->base.vmgenid = (struct proto_bytes){ 0 };
	m->kvm_fd = m->memory_fd = -1;
	c->have_base = true;
	memcpy(g->name, m->name, sizeof(g->name));
	memcpy(g->uuid, m->uuid, sizeof(g->uuid));
	return 0;
}

int guest_config_boot(struct guest *g, struct msg_g_boot *m, struct err *e)
{
	struct guest_config *c = g->cfg;

	if (c->have_boot)
		return err_set(e, EEXIST, "configured-twice",
			       "guest %s: its boot configuration came twice", g->name);
	c->boot = *m;
	m->kernel_fd = m->initrd_fd = -1;
	c->have_boot = true;
	return 0;
}

static struct config_disk *config_disk_find(struct guest_config *c, const char *name)
{
	for (unsigned i = 0; i < c->ndisks; i++)
		if (!strcmp(c->disks[i].name, name))
			return &c->disks[i];
	return NULL;
}

int guest_config_disk(struct guest *g, struct msg_g_disk *m, struct err *e)
{
	struct guest_config *c = g->cfg;
	struct config_disk *d = config_disk_find(c, m->name);
	struct config_layer *layers;

	if (m->fd < 0)
		return err_set(e, EINVAL, "no-descriptor",
			       "disk %s: layer %llu came without its file", m->name,
			       (unsigned long long)m->layer);
	if (m->cache > BLK_CACHE_UNSAFE || m->on_error > IO_ERROR_REPORT)
		return err_set(e, EINVAL, "bad-disk-setting",
			       "disk %s: unknown cache or error policy", m->name);
	if (m->layer != (d ? d->nlayers : 0) || m->layer >= BLK_CHAIN_MAX)
		return err_set(
		    e, EINVAL, "bad-layer",
		    "disk %s: layer %llu is out of order, or the chain is deeper than %u", m->name,
		    (unsigned long long)m->layer, BLK_CHAIN_MAX);
	if (!d) {
		if (c->ndisks == MC_DISKS_MAX)
			return err_set(e, E2BIG, "too-many-disks", "guest %s: more than %u disks",
				       g->name, MC_DISKS_MAX);
		d = &c->disks[c->ndisks++];
		memcpy(d->name, m->name, sizeof(d->name));
		memcpy(d->serial, m->serial, sizeof(d->serial));
		d->queues = (unsigned)m->queues;
		d->on_error = (enum io_error_policy)m->on_error;
		d->cache = (enum blk_cache)m->cache;
		d->discard = m->discard;
		d->detect_zeroes = m->detect_zeroes;
		d->lease_fd = take_fd(&m->lease_fd);
		d->lease_ms = m->lease_ms;
		memcpy(d->owner.name, m->lease_owner, sizeof(d->owner.name));
		memcpy(d->owner.file, m->lease_file, sizeof(d->owner.file));
		memcpy(d->owner.host, m->lease_host, sizeof(d->owner.host));
	}
	layers = realloc(d->layers, (d->nlayers + 1) * sizeof(*layers));
	if (!layers)
		return err_set(e, ENOMEM, "no-memory", "guest %s: out of memory", g->name);
	d->layers = layers;
	layers = &d->layers[d->nlayers++];
	memcpy(layers->driver, m->driver, sizeof(layers->driver));
	memcpy(layers->label, m->label, sizeof(layers->label));
	layers->fd = take_fd(&m->fd);
	layers->read_only = m->read_only;
	return 0;
}

int guest_config_nic(struct guest *g, struct msg_g_nic *m, struct err *e)
{
	int *taps[] = { &m->tap0, &m->tap1, &m->tap2, &m->tap3,
			&m->tap4, &m->tap5, &m->tap6, &m->tap7 };
	int *vhosts[] = { &m->vhost0, &m->vhost1, &m->vhost2, &m->vhost3,
			  &m->vhost4, &m->vhost5, &m->vhost6, &m->vhost7 };
	struct guest_config *c = g->cfg;
	struct mc_nic *nic;

	if (c->nnics == MC_NICS_MAX)
		return err_set(e, E2BIG, "too-many-nics", "guest %s: more than %u network ports",
			       g->name, MC_NICS_MAX);
	if (m->mac.len != 6 || m->queues < 1 || m->queues > ARRAY_SIZE(taps) || m->mtu > UINT16_MAX)
		return err_set(
		    e, EINVAL, "bad-nic",
		    "network port %s: needs a MAC address, 1 to 8 queues and an MTU below 65,536",
		    m->name);
	for (unsigned q = 0; q < m->queues; q++)
		if (*taps[q] < 0)
			return err_set(e, EINVAL, "no-descriptor",
				       "network port %s: queue %u came without its tap", m->name,
				       q);
	nic = &c->nics[c->nnics++];
	memcpy(nic->name, m->name, sizeof(nic->name));
	memcpy(nic->mac, m->mac.p, 6);
	nic->queues = (unsigned)m->queues;
	nic->mtu = (uint16_t)m->mtu;
	for (unsigned q = 0; q < ARRAY_SIZE(taps); q++) {
		nic->tap_fds[q] = q < nic->queues ? take_fd(taps[q]) : -1;
		nic->vhost_fds[q] = q < nic->queues ? take_fd(vhosts[q]) : -1;
	}
	return 0;
}

int guest_config_port(struct guest *g, struct msg_g_port *m, struct err *e)
{
	struct guest_config *c = g->cfg;
	unsigned *n = m->bus ? &c->nconsoles : &c->nserials;
	unsigned max = m->bus ? MC_CONSOLES_MAX : MC_SERIALS_MAX;
	struct mc_port *p;

	if (*n == max)
		return err_set(e, E2BIG, "too-many-ports", "guest %s: more than %u %s ports",
			       g->name, max, m->bus ? "console" : "serial");
	if (m->kind > CHARDEV_LOG || (m->kind != CHARDEV_NULL && m->fd < 0))
		return err_set(e, EINVAL, "bad-port",
			       "port %s: unknown kind, or it came without its descriptor", m->name);
	p = m->bus ? &c->consoles[(*n)++] : &c->serials[(*n)++];
	memcpy(p->name, m->name, sizeof(p->name));
	p->chr = (struct chardev_config){ .kind = (enum chardev_kind)m->kind,
					  .fd = take_fd(&m->fd),
					  .scrollback_bytes = MIN(m->scrollback_bytes, 1u << 20) };
	return 0;
}

int guest_config_load(struct guest *g, struct msg_g_load *m, struct err *e)
{
	struct guest_config *c = g->cfg;

	if (c->load_state_fd >= 0)
		return err_set(e, EEXIST, "configured-twice",
			       "guest %s: its saved state came twice", g->name);
	if (m->state_fd < 0 || m->memory_fd < 0)
		return err_set(e, EINVAL, "no-descriptor", "guest %s: a restore needs two files",
			       g->name);
	c->load_state_fd = take_fd(&m->state_fd);
	c->load_memory_fd = take_fd(&m->memory_fd);
	return 0;
}

static int config_disk_open(struct guest *g, struct config_disk *d, struct mc_disk *out,
			    struct err *e)
{
	int r = d->lease_fd < 0
		    ? 0
		    : guest_lease_take(g, d->name, d->lease_fd, &d->owner, d->lease_ms, e);

	if (r)
		return r;
	d->lease_fd = -1;
	d->specs = calloc(d->nlayers, sizeof(*d->specs));
	if (!d->specs)
		return err_set(e, ENOMEM, "no-memory", "disk %s: out of memory", d->name);
	for (unsigned i = 0; i < d->nlayers; i++)
		d->specs[i] = (struct blk_spec){
			.driver = d->layers[i].driver,
			.label = d->layers[i].label,
			.fd = d->layers[i].fd,
			.read_only = d->layers[i].read_only || i > 0,
			.discard = d->discard,
			.detect_zeroes = d->detect_zeroes,
			/* shared layers stay in the host's page cache, the guest's own goes around
			 * it */
			.cache = i > 0 ? BLK_CACHE_WRITEBACK : d->cache,
			.lease = guest_lease_of(g, d->name),
			.backing = i + 1 < d->nlayers ? &d->specs[i + 1] : NULL,
		};
	out->bd = blk_open(&d->specs[0], e);
	if (!out->bd)
		return -e->num;
	for (unsigned i = 0; i < d->nlayers; i++)
		d->layers[i].fd = -1;
	memcpy(out->name, d->name, sizeof(out->name));
	memcpy(out->serial, d->serial, sizeof(out->serial));
	out->queues = d->queues;
	out->read_only = d->layers[0].read_only;
	out->on_error = d->on_error;
	return 0;
}

static int config_boot_format(const char *text, enum boot_format *f, struct err *e)
{
	static const char *const names[] = { "auto", "bzimage", "elf", "pvh", NULL };

	*f = BOOT_AUTO;
	if (!*text)
		return 0;
	for (unsigned i = 0; names[i]; i++)
		if (!strcmp(text, names[i])) {
			*f = (enum boot_format)i;
			return 0;
		}
	return err_set(e, EINVAL, "bad-boot-format",
		       "boot format \"%s\" is unknown; there are auto, bzimage, elf and pvh", text);
}

static int config_memory_pages(const char *text, struct machine_config *mc, struct err *e)
{
	if (!*text || !strcmp(text, "small"))
		mc->memory_flags = 0;
	else if (!strcmp(text, "thp"))
		mc->memory_flags = MEM_THP;
	else if (!strcmp(text, "huge"))
		mc->memory_flags = MEM_HUGETLB;
	else
		return err_set(e, EINVAL, "bad-memory-pages",
			       "memory pages \"%s\" are unknown; there are small, thp and huge",
			       text);
	if (!strcmp(text, "huge") && mc->memory_bytes % (2 << 20)) {
		err_set(e, EINVAL, "bad-memory-size",
			"%llu bytes of memory are not a multiple of 2 MiB, the size of a huge page",
			(unsigned long long)mc->memory_bytes);
		err_hint(e, "give it a memory of whole MiB, an even number of them");
		return -EINVAL;
	}
	return 0;
}

int guest_config_open(struct guest *g, struct machine_config *mc, struct guest_settings *s,
		      struct err *e)
{
	struct guest_config *c = g->cfg;
	int r;

	if (!c->have_base)
		return err_set(e, EINVAL, "not-configured",
			       "the guest was told to build before it was configured");
	*mc = (struct machine_config){
		.memory_bytes = c->base.memory_bytes,
		.memory_fd = c->base.memory_fd,
		.vcpus = (unsigned)c->base.vcpus,
		.ndisks = c->ndisks,
		.nnics = c->nnics,
		.nserials = c->nserials,
		.nconsoles = c->nconsoles,
		.disks = c->mc_disks,
		.nics = c->nics,
		.serials = c->serials,
		.consoles = c->consoles,
		.rng = c->base.rng,
		.boot = { .kernel_fd = c->boot.kernel_fd,
			  .initrd_fd = c->boot.initrd_fd,
			  .kernel_name = c->boot.kernel_name,
			  .initrd_name = c->boot.initrd_name,
			  .cmdline = c->boot.cmdline },
		.cmdline = c->boot.cmdline,
	};
	memcpy(mc->vmgenid, c->vmgenid, sizeof(mc->vmgenid));
	if (c->base.uuid[0] && uuid_parse(c->base.uuid, mc->uuid))
		return err_set(e, EINVAL, "bad-uuid", "\"%s\" is not a UUID", c->base.uuid);
	r = config_boot_format(c->boot.format, &mc->boot.format, e);
	if (!r)
		r = config_memory_pages(c->base.memory_pages, mc, e);
	if (r)
		return r;
	*s = (struct guest_settings){ .kvm_fd = c->base.kvm_fd,
				      .vcpus = mc->vcpus,
				      .icount = c->base.icount,
				      .threads_one = c->base.threads_one,
				      .reboot_stops = c->base.reboot_stops,
				      .load_state_fd = c->load_state_fd,
				      .load_memory_fd = c->load_memory_fd,
				      .cpu = { .nested = c->base.nested, .vcpus = mc->vcpus } };
	memcpy(s->machine, c->base.machine, sizeof(s->machine));
	memcpy(s->accel, c->base.accel, sizeof(s->accel));
	memcpy(s->cpu.model, c->base.cpu_model, sizeof(s->cpu.model));
	memcpy(s->cpu.flags, c->base.cpu_flags, sizeof(s->cpu.flags));
	for (unsigned i = 0; i < c->ndisks; i++) {
		r = config_disk_open(g, &c->disks[i], &c->mc_disks[i], e);
		if (r)
			return r;
	}
	return 0;
}

void guest_config_taken(struct guest_config *c)
{
	for (unsigned i = 0; i < c->ndisks; i++)
		c->mc_disks[i].bd = NULL;
	for (unsigned i = 0; i < c->nnics; i++)
		for (unsigned q = 0; q < c->nics[i].queues; q++)
			c->nics[i].tap_fds[q] = c->nics[i].vhost_fds[q] = -1;
	for (unsigned i = 0; i < c->nserials; i++)
		c->serials[i].chr.fd = -1;
	for (unsigned i = 0; i < c->nconsoles; i++)
		c->consoles[i].chr.fd = -1;
	c->base.memory_fd = -1;
	c->boot.kernel_fd = c->boot.initrd_fd = -1;
}
