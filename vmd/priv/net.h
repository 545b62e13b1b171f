/* net.h - what net.c, nft.c and dhcp.c share of a network that is up. */
#ifndef VMD_PRIV_NET_H
#define VMD_PRIV_NET_H

#include <net/if.h>

#include "vmd/priv/priv.h"

struct net_forward {
	char proto[4], host_ip[46], guest_ip[16];
	uint16_t host_port, guest_port;
	int fd;	    /* bound, so that nothing of the host takes the port */
	bool stale; /* core has not told it since its last net_up */
};

struct net_host {
	char mac[18], ip[16], name[64];
};

struct priv_net {
	struct priv_net *next;
	char name[64], bridge[IFNAMSIZ], cidr4[20], domain[64], dhcp_first[16], dhcp_last[16];
	bool made_bridge, nat, dhcp, isolated;
	uint64_t mtu;
	struct priv *p;
	pid_t dnsmasq; /* 0: none of ours runs */
	int dnsmasq_pidfd;
	struct loop_fd dnsmasq_w;
	struct loop_timer dnsmasq_again;
	unsigned dnsmasq_deaths; /* in a row */
	uint64_t dnsmasq_started_ns;
	unsigned nforwards, nhosts;
	struct net_forward *forwards;
	struct net_host *hosts;
};

/* nft_apply() - the whole table anew from @p->nets, in one transaction. nft_remove() - the table
 * goes. */
int nft_apply(struct priv *p, struct err *e);
void nft_remove(struct priv *p);

void dhcp_init(struct priv *p, struct priv_net *n); /* before all else */
void dhcp_unwatch(struct priv_net *n);		    /* it runs on, nobody looks */
int dhcp_start(struct priv *p, struct priv_net *n, struct err *e);
void dhcp_stop(struct priv *p, struct priv_net *n);
int dhcp_hosts_write(struct priv *p, struct priv_net *n, struct err *e); /* and tell dnsmasq */
int dhcp_lease_free(struct priv *p, struct priv_net *n, const char *ip, const char *mac,
		    struct err *e);
void dhcp_forget(struct priv *p, const char *net);
int dhcp_dir(struct priv *p, const char *net); /* <state>/dhcp/NET */

void forwards_free(struct priv_net *n);

bool net_ip4_ok(const char *text);
struct priv_net *net_find(struct priv *p, const char *name);
void net_sysctl(const char *ifname, const char *key, const char *value);
bool net_uplink(char ifname[IFNAMSIZ]); /* the interface of the default route */

#endif
