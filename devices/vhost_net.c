/* vhost_net.c - see vhost_net.h. The kernel's interface: Documentation of vhost.h; its rings are
 * virtio's (1.2, 2.7), used in place.
 */
#include "devices/vhost_net.h"

#include <errno.h>
#include <linux/vhost.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/overflow.h"
#include "hypervisor-core/vm.h"

/* What a ring needs of the kernel to look to the driver as our own does. The header is the tap's
 * (no VHOST_NET_F_VIRTIO_NET_HDR): vhost passes it on as it is. */
#define VHOST_NET_NEEDS (1ull << 15 | 1ull << 28 | 1ull << 29 | 1ull << 32)

struct vhost_net {
	struct vm *vm;
	int fd, error_fd;
	bool on[2];
};

struct vhost_table {
	struct vhost_memory head;
	struct vhost_memory_region region[MEM_REGIONS_MAX];
};

struct vhost_net *vhost_net_new(struct vm *vm, int fd, char *why, size_t size)
{
	struct vhost_net *v;
	uint64_t features = 0;

	if (!(vm->accel->caps & ACCEL_HAS_IRQFD)) {
		snprintf(why, size, "the software CPU has to see what devices write");
		return NULL;
	}
	if (ioctl(fd, VHOST_SET_OWNER) < 0 || ioctl(fd, VHOST_GET_FEATURES, &features) < 0) {
		snprintf(why, size, "vhost-net refused this process: %s", strerror(errno));
		return NULL;
	}
	if (~features & VHOST_NET_NEEDS) {
		snprintf(why, size, "this kernel's vhost-net lacks features 0x%llx",
			 (unsigned long long)(~features & VHOST_NET_NEEDS));
		return NULL;
	}
	v = calloc(1, sizeof(*v));
	if (v)
		v->error_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (!v || v->error_fd < 0) {
		free(v);
		snprintf(why, size, "no memory or descriptors for it");
		return NULL;
	}
	v->vm = vm;
	v->fd = fd;
	return v;
}

static int vhost_set_backend(const struct vhost_net *v, unsigned ring, int tap)
{
	struct vhost_vring_file f = { .index = ring, .fd = tap };

	return ioctl(v->fd, VHOST_NET_SET_BACKEND, &f) < 0 ? -errno : 0;
}

static int vhost_set_file(const struct vhost_net *v, unsigned long request, unsigned ring, int fd)
{
	struct vhost_vring_file f = { .index = ring, .fd = fd };

	return ioctl(v->fd, request, &f) < 0 ? -errno : 0;
}

/* Guest RAM as it is now. Where device writes are tracked the kernel's would be missed. */
static int vhost_set_memory(const struct vhost_net *v)
{
	struct vhost_table t = { 0 };

	for (unsigned i = 0; i < mem_region_count(v->vm->mem); i++) {
		const struct mem_region *r = mem_region_get(v->vm->mem, i);

		if (r->flags & MEM_ROM)
			continue;
		if (r->dirty)
			return -EBUSY;
		t.region[t.head.nregions++] = (struct vhost_memory_region){
			.guest_phys_addr = r->gpa,
			.memory_size = r->size_bytes,
			.userspace_addr = (uintptr_t)r->hva,
		};
	}
	return ioctl(v->fd, VHOST_SET_MEM_TABLE, &t) < 0 ? -errno : 0;
}

static int vhost_set_ring(const struct vhost_net *v, unsigned ring, const struct virtq *q)
{
	struct vhost_vring_state num = { .index = ring, .num = q->size },
				 base = { .index = ring, .num = q->last_avail };
	struct vhost_vring_addr addr = {
		.index = ring,
		.desc_user_addr = (uintptr_t)q->desc_p,
		.avail_user_addr = (uintptr_t)q->avail_p,
		.used_user_addr = (uintptr_t)q->used_p,
	};

	return ioctl(v->fd, VHOST_SET_VRING_NUM, &num) < 0 ||
		       ioctl(v->fd, VHOST_SET_VRING_BASE, &base) < 0 ||
		       ioctl(v->fd, VHOST_SET_VRING_ADDR, &addr) < 0
		   ? -errno
		   : 0;
}

int vhost_net_start(struct vhost_net *v, unsigned ring, struct virtq *q, uint64_t features, int tap,
		    int kick, int call)
{
	uint64_t one = 1;
	int ret = 0;

	features &= VHOST_NET_NEEDS;
	/* both are of the pair, and fixed while a ring runs */
	if (!v->on[0] && !v->on[1]) {
		ret = ioctl(v->fd, VHOST_SET_FEATURES, &features) < 0 ? -errno : 0;
		if (!ret)
			ret = vhost_set_memory(v);
	}
	if (!ret)
		ret = vhost_set_ring(v, ring, q);
	if (!ret)
		ret = vhost_set_file(v, VHOST_SET_VRING_CALL, ring, call);
	if (!ret)
		ret = vhost_set_file(v, VHOST_SET_VRING_ERR, ring, v->error_fd);
	if (!ret)
		ret = vhost_set_file(v, VHOST_SET_VRING_KICK, ring, kick);
	if (!ret)
		ret = vhost_set_backend(v, ring, tap);
	if (ret)
		return ret;
	v->on[ring] = true;
	/* what is on the ring already. EAGAIN: it rings */
	if (write(kick, &one, sizeof(one)) < 0 && errno != EAGAIN)
		return -errno;
	return 0;
}

void vhost_net_stop(struct vhost_net *v, unsigned ring, struct virtq *q)
{
	struct vhost_vring_state base = { .index = ring };
	int ret;

	if (!v->on[ring])
		return;
	v->on[ring] = false;
	ret = vhost_set_backend(v, ring, -1);
	if (!ret && ioctl(v->fd, VHOST_GET_VRING_BASE, &base) < 0)
		ret = -errno;
	if (ret)
		log_error("vhost-net does not let go of a ring: %s", strerror(-ret));
	else
		/* no frame is under way: what was taken was given back */
		virtq_go_on_at(q, (uint16_t)base.num);
}

void vhost_net_free(struct vhost_net *v)
{
	if (!v)
		return;
	for (unsigned i = 0; i < 2; i++)
		if (v->on[i])
			vhost_set_backend(v, i, -1);
	close_fd(&v->fd);
	close_fd(&v->error_fd);
	free(v);
}

bool vhost_net_runs(const struct vhost_net *v, unsigned ring)
{
	return v && v->on[ring];
}

int vhost_net_call(struct vhost_net *v, unsigned ring, int call)
{
	return vhost_set_file(v, VHOST_SET_VRING_CALL, ring, call);
}

int vhost_net_error_fd(const struct vhost_net *v)
{
	return v->error_fd;
}
