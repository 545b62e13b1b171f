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

int nft_apply(struct priv *p, struct err *e)
{
	struct text t = { 0 };
	char table[24];

	nft_table(p, table);
	text_printf(&t, "add table ip %s\nflush table ip %s\ntable ip %s {\n", table, table, table);
	text_add(&t,
		 "chain postrouting { type nat hook postrouting priority 100; policy accept;\n");
	for (struct priv_net *n = p->nets; n; n = n->next)
		if (n->nat && *n->cidr4)
			text_printf(&t, "ip saddr %s oifname != \"%s\" masquerade\n", n->cidr4,
				    n->bridge);
	text_add(&t,
		 "}\nchain prerouting { type nat hook prerouting priority -100; policy accept;\n");
	for (int local = 0; local < 2; local++) {
		if (local)
			text_add(&t, "}\nchain output { type nat hook output priority -100; policy "
				     "accept;\n");
		for (struct priv_net *n = p->nets; n; n = n->next)
			for (unsigned i = 0; i < n->nforwards; i++) {
				const struct net_forward *f = &n->forwards[i];

				if (*f->host_ip)
					text_printf(&t, "ip daddr %s ", f->host_ip);
				else
					text_add(&t, "fib daddr type local ");
				text_printf(&t, "%s dport %u dnat to %s:%u\n", f->proto,
					    f->host_port, f->guest_ip, f->guest_port);
			}
	}
	text_add(&t, "}\nchain forward { type filter hook forward priority 0; policy accept;\n");
	for (struct priv_net *n = p->nets; n; n = n->next)
		if (n->isolated) {
			text_printf(&t, "iifname \"%s\" oifname != \"%s\" drop\n", n->bridge,
				    n->bridge);
			text_printf(&t, "oifname \"%s\" iifname != \"%s\" drop\n", n->bridge,
				    n->bridge);
		}
	text_add(&t, "}\n}\n");
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
