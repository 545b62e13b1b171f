/* chardev.h - where a serial port or console port leads.
 *
 * The far side is an fd that priv opened (the jail has no names): a stream (pty master, real tty,
 * connected unix/tcp socket, one end of a pair to another guest's port), a listener (unix or tcp),
 * a file, or nothing. Besides that one redirection, any number of consoles may attach and detach at
 * run time (chardev_attach); each new one first gets the scrollback. Output never blocks the guest:
 * what the far side does not take within the ring is dropped and counted, except for files.
 * A log is a file of its own making: appended to, and of all that was ever written only the last
 * CHARDEV_LOG_KEEP bytes stay on the host; what is older becomes a hole, so that offsets stay.
 * Locking: owner's callbacks run on the main loop with the machine lock held; chardev_write() is
 * called with it held. Trust: bytes from the far side are data for the guest only.
 */
#ifndef DEVICES_CHARDEV_H
#define DEVICES_CHARDEV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

struct vm;
struct chardev;

enum chardev_kind {
	CHARDEV_NULL,
	CHARDEV_STREAM,
	CHARDEV_LISTEN,
	CHARDEV_FILE,
	CHARDEV_LOG,
};

#define CHARDEV_LOG_KEEP (8u << 20)

struct chardev_config {
	enum chardev_kind kind;
	int fd;			 /* taken on success; -1 for NULL */
	size_t scrollback_bytes; /* 0 = none */
};

struct chardev_owner_ops {
	size_t (*room)(void *owner); /* bytes the guest side can take now */
	void (*receive)(void *owner, const uint8_t *p, size_t len); /* at most room() */
	void (*connected)(void *owner, bool on); /* carrier: DCD/DSR, virtio PORT_OPEN */
	void (*writable)(void *owner);		 /* output ring has room again */
};

struct chardev *chardev_new(struct vm *vm, const char *id, const struct chardev_config *cfg,
			    const struct chardev_owner_ops *ops, void *owner, struct err *e);
void chardev_free(struct chardev *c);
/* chardev_write() - guest output; returns the bytes taken (all, unless a file or slow reader
 * holds). */
size_t chardev_write(struct chardev *c, const uint8_t *p, size_t len);
void chardev_room(struct chardev *c); /* the guest side has room again: receive more */
/* chardev_attach() - a console: stream socket @fd taken. Gets scrollback, then live output.
 * @read_only input is dropped. Return 0 or -errno. */
int chardev_attach(struct chardev *c, int fd, bool read_only, struct err *e);
/* chardev_replace() - new far side for STREAM kinds that reconnect; @fd taken. */
int chardev_replace(struct chardev *c, const struct chardev_config *cfg, struct err *e);
void chardev_stats(const struct chardev *c, uint64_t *in, uint64_t *out, uint64_t *dropped);
struct chardev *chardev_find(struct vm *vm, const char *id);

#endif
