/* nft.c - the instance's own nftables table, replaced whole in one transaction whenever something
 * changes.
 * Every word that goes into the rules was checked by net.c: addresses, ports, interface names.
 * Nobody else's tables are read or written.
 */
#include <errno.h>
#include <nftables/libnftables.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/overflow.h"
#include "common/text.h"
#include "vmd/priv/net.h"

static void nft_table(struct priv *p, char out[24])
{
	snprintf(out, 24, "%s", p->instance);
	for (char *c = out; *c; c++)
		if (*c == '-')
			*c = '_';
}

static int nft_run(const char *rules, struct err *e)
{
	struct nft_ctx *ctx = nft_ctx_new(NFT_CTX_DEFAULT);
	int ret = 0;

	if (!ctx)
		return err_set(e, ENOMEM, "no-nftables", "nftables cannot be used");
	nft_ctx_buffer_error(ctx);
	nft_ctx_buffer_output(ctx);
	if (nft_run_cmd_from_buffer(ctx, rules) != 0) {
		char text[200];

		snprintf(text, sizeof(text), "%.199s", nft_ctx_get_error_buffer(ctx));
		ret = err_set(e, EIO, "nftables-failed",
			      "nftables refused the rules of this daemon: %s", text);
		err_hint(e, "is nf_tables in the kernel? modprobe nf_tables");
	}
	nft_ctx_free(ctx);
	return ret;
}

/* From and to the guests of one network. A made bridge's network with NAT lets its guests out and
 * nobody in, one without keeps them in; forwards come in either way. An administrator's bridge
 * keeps its own rules. */
static void nft_forward_chain(struct text *t, const struct priv_net *n)
{
	const char *br = n->bridge;

	/* by way of the host's address as little as from port to port */
	if (n->isolated)
		text_printf(t,
			    "iifname \"%s\" oifname \"%s\" ct status dnat accept\n"
			    "iifname \"%s\" oifname \"%s\" drop\n",
			    br, br, br, br);
	if (!n->made_bridge)
		return;
	if (!n->nat)
		text_printf(t,
			    "iifname \"%s\" oifname != \"%s\" ct state established,related accept\n"
			    "iifname \"%s\" oifname != \"%s\" drop\n",
			    br, br, br, br);
	text_printf(t,
		    "oifname \"%s\" iifname != \"%s\" ct state established,related accept\n"
		    "oifname \"%s\" iifname != \"%s\" ct status dnat accept\n"
		    "oifname \"%s\" iifname != \"%s\" drop\n",
		    br, br, br, br, br, br);
}

static void nft_nat_chain(struct text *t, const struct priv_net *n)
{
	if (n->nat && *n->cidr4)
		text_printf(t, "ip saddr %s oifname != \"%s\" masquerade\n", n->cidr4, n->bridge);
	if (!n->nforwards)
		return;
	/* a guest that comes back to its own network, and the host by way of 127.0.0.1: the answer
	 * has to pass here again */
	text_printf(t, "oifname \"%s\" ip saddr 127.0.0.0/8 masquerade\n", n->bridge);
	if (*n->cidr4)
		text_printf(t, "oifname \"%s\" ip saddr %s ct status dnat masquerade\n", n->bridge,
			    n->cidr4);
}

static void nft_dnat_chain(struct text *t, const struct priv_net *n)
{
	for (unsigned i = 0; i < n->nforwards; i++) {
		const struct net_forward *f = &n->forwards[i];

		if (*f->host_ip)
			text_printf(t, "ip daddr %s ", f->host_ip);
		else
			text_add(t, "fib daddr type local ");
		text_printf(t, "%s dport %u dnat to %s:%u\n", f->proto, f->host_port, f->guest_ip,
			    f->guest_port);
	}
}

/* forward.c opens 127/8 of the bridge for the host's sake: not for what guests send there */
static void nft_local_chain(struct text *t, const struct priv_net *n)
{
	if (n->nforwards)
		text_printf(t, "iifname \"%s\" ip daddr 127.0.0.0/8 drop\n", n->bridge);
}

int nft_apply(struct priv *p, struct err *e)
{
	static const struct {
		const char *head;
		void (*rules)(struct text *t, const struct priv_net *n);
	} chains[] = {
		{ "local { type filter hook prerouting priority -300", nft_local_chain },
		{ "prerouting { type nat hook prerouting priority -100", nft_dnat_chain },
		{ "output { type nat hook output priority -100", nft_dnat_chain },
		{ "forward { type filter hook forward priority 0", nft_forward_chain },
		{ "postrouting { type nat hook postrouting priority 100", nft_nat_chain },
	};
	struct text t = { 0 };
	char table[24];

	nft_table(p, table);
	text_printf(&t, "add table ip %s\nflush table ip %s\ntable ip %s {\n", table, table, table);
	for (size_t i = 0; i < ARRAY_SIZE(chains); i++) {
		text_printf(&t, "chain %s; policy accept;\n", chains[i].head);
		for (const struct priv_net *n = p->nets; n; n = n->next)
			chains[i].rules(&t, n);
		text_add(&t, "}\n");
	}
	text_add(&t, "}\n");
	int ret = t.error ? err_set(e, ENOMEM, "no-memory", "out of memory") : nft_run(t.s, e);

	text_free(&t);
	return ret;
}

void nft_remove(struct priv *p)
{
	char table[24], cmd[80];

	nft_table(p, table);
	snprintf(cmd, sizeof(cmd), "add table ip %s\ndelete table ip %s\n", table, table);
	nft_run(cmd, NULL);
}
