/* nbd_handshake.c - fixed newstyle negotiation: options until an export is chosen.
 *
 * An option longer than 16 KiB ends the connection; so does anything out of order. Nothing here
 * touches a disk: an export's size and flags are known. Threading, trust: nbd_server.h.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/overflow.h"
#include "storage/bitmap.h"
#include "storage/nbd_conn.h"

#define NBD_META_NAME_MAX (20 + BLK_BITMAP_NAME_MAX)

static void nbd_option_reply(struct nbd_conn *c, uint32_t opt, uint32_t type, const void *data,
			     size_t len)
{
	uint8_t h[20 + 16 + NBD_NAME_MAX + 512];

	nbd_put64(h, NBD_REP_MAGIC);
	nbd_put32(h + 8, opt);
	nbd_put32(h + 12, type);
	nbd_put32(h + 16, len);
	if (len)
		memcpy(h + 20, data, len);
	nbd_reply(c, h, 20 + len, NULL, 0, 0);
}

static void nbd_option_error(struct nbd_conn *c, uint32_t opt, uint32_t type, const char *text)
{
	nbd_option_reply(c, opt, type, text, strlen(text));
}

static const struct nbd_export *nbd_export_find(struct nbd_conn *c, const uint8_t *name, size_t len)
{
	const struct nbd_server *s = c->server;

	for (unsigned i = 0; i < s->nexports; i++)
		if (strlen(s->exports[i].name) == len && memcmp(s->exports[i].name, name, len) == 0)
			return &s->exports[i];
	return len == 0 && s->nexports ? &s->exports[0] : NULL;
}

static uint16_t nbd_export_flags(const struct nbd_export *x, bool structured)
{
	struct blk_info info;

	blk_info(x->bd, &info);
	if (x->read_only || info.read_only)
		return NBD_EXPORT_HAS_FLAGS | NBD_EXPORT_READ_ONLY | NBD_EXPORT_MULTI_CONN |
		       NBD_EXPORT_FLUSH | (structured ? NBD_EXPORT_DF : 0);
	return NBD_EXPORT_HAS_FLAGS | NBD_EXPORT_FLUSH | NBD_EXPORT_FUA | NBD_EXPORT_ZEROES |
	       NBD_EXPORT_MULTI_CONN | (info.has_discard ? NBD_EXPORT_TRIM : 0) |
	       (structured ? NBD_EXPORT_DF : 0);
}

static bool nbd_export_enter(struct nbd_conn *c, const struct nbd_export *x)
{
	struct err e = { 0 };
	struct blk_info info;

	blk_info(x->bd, &info);
	c->queue = blk_queue_new(x->bd, c->server->loop, &e);
	if (!c->queue)
		return false;
	c->export = x;
	c->size = info.size_bytes;
	c->read_only = x->read_only || info.read_only;
	c->handshaking = false;
	loop_timer_stop(&c->deadline);
	return true;
}

static void nbd_option_list(struct nbd_conn *c, uint32_t len)
{
	uint8_t b[4 + NBD_NAME_MAX + 256];

	if (len) {
		nbd_option_error(c, NBD_OPT_LIST, NBD_REP_ERR_INVALID,
				 "the list takes no argument");
		return;
	}
	for (unsigned i = 0; i < c->server->nexports; i++) {
		const struct nbd_export *x = &c->server->exports[i];
		size_t n = strlen(x->name), d = x->description ? strnlen(x->description, 256) : 0;

		nbd_put32(b, n);
		memcpy(b + 4, x->name, n);
		if (d)
			memcpy(b + 4 + n, x->description, d);
		nbd_option_reply(c, NBD_OPT_LIST, NBD_REP_SERVER, b, 4 + n + d);
	}
	nbd_option_reply(c, NBD_OPT_LIST, NBD_REP_ACK, NULL, 0);
}

/* nbd_option_go() - INFO and GO. False: the connection ends. */
static bool nbd_option_go(struct nbd_conn *c, uint32_t opt, const uint8_t *p, uint32_t len)
{
	const struct nbd_export *x;
	struct blk_info info;
	uint32_t name;
	uint8_t b[14];

	name = len >= 6 ? nbd_get32(p) : UINT32_MAX;
	if (name > NBD_NAME_MAX || len < 6 + name ||
	    len != 6 + name + 2u * nbd_get16(p + 4 + name)) {
		nbd_option_error(c, opt, NBD_REP_ERR_INVALID, "malformed request");
		return true;
	}
	x = nbd_export_find(c, p + 4, name);
	if (!x) {
		nbd_option_error(c, opt, NBD_REP_ERR_UNKNOWN, "no export has this name");
		return true;
	}
	blk_info(x->bd, &info);
	nbd_put16(b, NBD_INFO_EXPORT);
	nbd_put64(b + 2, info.size_bytes);
	nbd_put16(b + 10, nbd_export_flags(x, c->structured));
	nbd_option_reply(c, opt, NBD_REP_INFO, b, 12);
	nbd_put16(b, NBD_INFO_BLOCK_SIZE);
	nbd_put32(b + 2, info.block_size);
	nbd_put32(b + 6, MAX(info.block_size, 4096u));
	nbd_put32(b + 10, NBD_PAYLOAD_MAX);
	nbd_option_reply(c, opt, NBD_REP_INFO, b, 14);
	if (opt == NBD_OPT_GO) {
		if (c->meta && c->export != x)
			c->meta = 0; /* the contexts were for another export */
		if (!nbd_export_enter(c, x))
			return false;
	}
	nbd_option_reply(c, opt, NBD_REP_ACK, NULL, 0);
	return true;
}

static unsigned nbd_meta_count(const struct nbd_export *x)
{
	unsigned n = 1;

	while (x->bitmaps && x->bitmaps[n - 1])
		n++;
	return n;
}

/* nbd_meta_name() - context @i of an export (0: allocation); its length. */
static size_t nbd_meta_name(const struct nbd_export *x, unsigned i, char name[NBD_META_NAME_MAX])
{
	int n = i ? snprintf(name, NBD_META_NAME_MAX, "qemu:dirty-bitmap:%s", x->bitmaps[i - 1])
		  : snprintf(name, NBD_META_NAME_MAX, "base:allocation");

	return MIN((size_t)n, (size_t)NBD_META_NAME_MAX - 1);
}

/* nbd_meta_wants() - a query names the context, or, to list, what stands before it. */
static bool nbd_meta_wants(const uint8_t *q, uint32_t len, const char *name, size_t n, bool listing)
{
	if (len == n && memcmp(q, name, n) == 0)
		return true;
	return listing && len && len < n && q[len - 1] == ':' && memcmp(q, name, len) == 0;
}

/* nbd_meta_queries() - the contexts that @n queries at @p name. False: malformed. */
static bool nbd_meta_queries(const struct nbd_export *x, const uint8_t *p, uint32_t left,
			     uint32_t n, bool listing, uint64_t *want)
{
	unsigned count = nbd_meta_count(x);
	char name[NBD_META_NAME_MAX];

	*want = listing && !n ? UINT64_MAX : 0;
	while (n--) {
		uint32_t len;

		if (left < 4 || (len = nbd_get32(p)) > left - 4)
			return false;
		for (unsigned i = 0; i < count; i++) {
			size_t k = nbd_meta_name(x, i, name);

			if (nbd_meta_wants(p + 4, len, name, k, listing))
				*want |= 1ULL << i;
		}
		p += 4 + len;
		left -= 4 + len;
	}
	return left == 0;
}

static void nbd_option_meta(struct nbd_conn *c, uint32_t opt, const uint8_t *p, uint32_t len)
{
	bool listing = opt == NBD_OPT_LIST_META;
	const struct nbd_export *x;
	uint32_t name = len >= 8 ? nbd_get32(p) : UINT32_MAX;
	uint8_t b[4 + NBD_META_NAME_MAX];
	uint64_t want;

	if (!listing) {
		c->meta = 0;
		if (!c->structured) {
			nbd_option_error(c, opt, NBD_REP_ERR_INVALID, "structured replies first");
			return;
		}
	}
	if (name > NBD_NAME_MAX || len < 8 + name) {
		nbd_option_error(c, opt, NBD_REP_ERR_INVALID, "malformed request");
		return;
	}
	x = nbd_export_find(c, p + 4, name);
	if (!x) {
		nbd_option_error(c, opt, NBD_REP_ERR_UNKNOWN, "no export has this name");
		return;
	}
	if (!nbd_meta_queries(x, p + 8 + name, len - 8 - name, nbd_get32(p + 4 + name), listing,
			      &want)) {
		nbd_option_error(c, opt, NBD_REP_ERR_INVALID, "malformed request");
		return;
	}
	for (unsigned i = 0; i < nbd_meta_count(x); i++) {
		size_t n;

		if (!(want >> i & 1))
			continue;
		n = nbd_meta_name(x, i, (char *)b + 4);
		nbd_put32(b, listing ? 0 : NBD_META_ALLOCATION + i);
		nbd_option_reply(c, opt, NBD_REP_META, b, 4 + n);
		if (!listing) {
			c->meta |= 1ULL << i;
			c->export = x;
		}
	}
	nbd_option_reply(c, opt, NBD_REP_ACK, NULL, 0);
}

static bool nbd_option_export_name(struct nbd_conn *c, const uint8_t *p, uint32_t len)
{
	const struct nbd_export *x = nbd_export_find(c, p, len);
	uint8_t b[10 + 124] = { 0 };

	if (!x || !nbd_export_enter(c, x))
		return false; /* the protocol knows no other refusal here */
	nbd_put64(b, c->size);
	nbd_put16(b + 8, nbd_export_flags(x, c->structured));
	nbd_reply(c, b, c->no_zeroes ? 10 : sizeof(b), NULL, 0, 0);
	return true;
}

/* nbd_option() - Return: false where the connection ends. */
static bool nbd_option(struct nbd_conn *c, uint32_t opt, const uint8_t *p, uint32_t len)
{
	switch (opt) {
	case NBD_OPT_EXPORT_NAME:
		return nbd_option_export_name(c, p, len);
	case NBD_OPT_ABORT:
		nbd_option_reply(c, opt, NBD_REP_ACK, NULL, 0);
		nbd_flush_out(c);
		return false;
	case NBD_OPT_LIST:
		nbd_option_list(c, len);
		return true;
	case NBD_OPT_INFO:
	case NBD_OPT_GO:
		return nbd_option_go(c, opt, p, len);
	case NBD_OPT_STRUCTURED_REPLY:
		if (len) {
			nbd_option_error(c, opt, NBD_REP_ERR_INVALID, "takes no argument");
		} else {
			c->structured = true;
			nbd_option_reply(c, opt, NBD_REP_ACK, NULL, 0);
		}
		return true;
	case NBD_OPT_LIST_META:
	case NBD_OPT_SET_META:
		nbd_option_meta(c, opt, p, len);
		return true;
	default:
		nbd_option_error(c, opt, NBD_REP_ERR_UNSUP, "not supported");
		return true;
	}
}

ssize_t nbd_handshake(struct nbd_conn *c, const uint8_t *p, size_t n)
{
	uint32_t len;

	if (!c->got_flags) {
		uint32_t flags;

		if (n < 4)
			return 0;
		flags = nbd_get32(p);
		if (flags & ~(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES))
			return -1;
		c->no_zeroes = flags & NBD_FLAG_NO_ZEROES;
		c->got_flags = true;
		return 4;
	}
	if (n < 16)
		return 0;
	len = nbd_get32(p + 12);
	if (nbd_get64(p) != NBD_OPT_MAGIC || len > NBD_OPT_LEN_MAX)
		return -1;
	if (n < 16 + (size_t)len)
		return 0;
	return nbd_option(c, nbd_get32(p + 8), p + 16, len) ? (ssize_t)(16 + len) : -1;
}
