/* forward.c - what core says of a single guest on a network that is up: fixed leases, and ports of
 * the host that lead to it.
 *
 * A forwarded port is bound here as well, so that no service of the host loses its port to a rule
 * unnoticed, nor takes one that leads elsewhere; nothing ever arrives on that socket. Rules are
 * nft.c's.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/text.h"
#include "vmd/priv/net.h"

static struct priv_net *net_get(struct priv *p, const char *name, struct err *e)
{
	struct priv_net *n = net_find(p, name);

	if (!n)
		err_set(e, ENOENT, "net-not-up", "network %.63s is not up", name);
	return n;
}

int net_dhcp_host(struct priv *p, const struct msg_p_dhcp_host *m, struct err *e)
{
	struct priv_net *n = net_get(p, m->net, e);
	unsigned b[6], i;

	if (!n)
		return -ENOENT;
	if (strlen(m->mac) != 17 ||
	    sscanf(m->mac, "%2x:%2x:%2x:%2x:%2x:%2x", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5]) !=
		6 ||
	    strspn(m->mac, "0123456789abcdefABCDEF:") != 17 || (*m->ip && !net_ip4_ok(m->ip)) ||
	    (*m->name && !name_valid(m->name)))
		return err_set(e, EINVAL, "bad-lease",
			       "network %s: \"%s\" \"%s\" \"%s\" is no fixed lease", m->net, m->mac,
			       m->ip, m->name);
	/* dnsmasq takes the first of two entries with one address: the guest that had it is gone */
	for (i = 0; i < n->nhosts && *m->ip && !m->remove; i++)
		if (!strcmp(n->hosts[i].ip, m->ip) && strcasecmp(n->hosts[i].mac, m->mac))
			n->hosts[i--] = n->hosts[--n->nhosts];
	for (i = 0; i < n->nhosts; i++)
		if (!strcasecmp(n->hosts[i].mac, m->mac))
			break;
	if (m->remove) {
		if (i < n->nhosts)
			n->hosts[i] = n->hosts[--n->nhosts];
	} else {
		if (i == n->nhosts) {
			struct net_host *h = realloc(n->hosts, (n->nhosts + 1) * sizeof(*h));

			if (!h)
				return err_set(e, ENOMEM, "no-memory", "out of memory");
			n->hosts = h;
			n->nhosts++;
		}
		snprintf(n->hosts[i].mac, sizeof(n->hosts[i].mac), "%s", m->mac);
		snprintf(n->hosts[i].ip, sizeof(n->hosts[i].ip), "%s", m->ip);
		snprintf(n->hosts[i].name, sizeof(n->hosts[i].name), "%s", m->name);
	}
	int ret = m->more ? 0 : dhcp_hosts_write(p, n, e);

	if (!ret && *m->ip && !m->remove)
		ret = dhcp_lease_free(p, n, m->ip, m->mac, e);

	if (!ret)
		priv_ok(p, m->msg_id);
	return ret;
}

int net_dhcp_leases(struct priv *p, const struct msg_p_dhcp_leases *m, struct err *e)
{
	if (!net_get(p, m->net, e))
		return -ENOENT;
	_cleanup_close_ int dir = dhcp_dir(p, m->net);
	_cleanup_close_ int fd = dir < 0 ? -1 : path_open_beneath(dir, "leases", O_RDONLY, 0);

	if (fd < 0)
		return err_set(e, ENOENT, "no-leases", "network %s has no leases yet", m->net);
	priv_result(p, m->msg_id, 0, fd, -1, NULL);
	return 0;
}

/* ---- forwards ---- */

void forwards_free(struct priv_net *n)
{
	for (unsigned i = 0; i < n->nforwards; i++)
		close_fd(&n->forwards[i].fd);
	free(n->forwards);
}

static void forward_drop(struct priv_net *n, unsigned i)
{
	close_fd(&n->forwards[i].fd);
	n->forwards[i] = n->forwards[--n->nforwards];
}

static int forward_bind(const struct msg_p_forward *m, struct err *e)
{
	struct sockaddr_in sa = { .sin_family = AF_INET,
				  .sin_port = htons((uint16_t)m->host_port) };
	_cleanup_close_ int fd =
	    socket(AF_INET, (strcmp(m->proto, "udp") ? SOCK_STREAM : SOCK_DGRAM) | SOCK_CLOEXEC, 0);

	if (*m->host_ip)
		inet_pton(AF_INET, m->host_ip, &sa.sin_addr);
	if (fd >= 0 && bind(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0)
		return take_fd(&fd);
	if (errno == EADDRNOTAVAIL)
		err_set(e, EADDRNOTAVAIL, "not-our-address", "%s is not an address of this host",
			m->host_ip);
	else
		err_set(e, errno, errno == EADDRINUSE ? "port-taken" : "bad-forward",
			"port %llu/%s of the host cannot lead to a guest: %s",
			(unsigned long long)m->host_port, m->proto,
			errno == EADDRINUSE ? "a service of the host has it" : strerror(errno));
	if (e->num == EADDRINUSE)
		err_hint(e, "ss -lnp 'sport = :%llu' shows which; or take another port",
			 (unsigned long long)m->host_port);
	return -e->num;
}

/* forward_in() - what comes in at the addressed interface may go on to @n. */
static void forward_in(const struct priv_net *n, const char *host_ip)
{
	char name[IFNAMSIZ];
	struct ifaddrs *all = NULL;
	struct in_addr want;

	net_sysctl(n->bridge, "forwarding", "1");
	/* the host's own connections to 127.0.0.1; nft.c keeps what is on 127/8 from the guests */
	net_sysctl(n->bridge, "route_localnet", "1");
	if (!*host_ip) {
		if (net_uplink(name))
			net_sysctl(name, "forwarding", "1");
		return;
	}
	if (inet_pton(AF_INET, host_ip, &want) != 1 || getifaddrs(&all) < 0)
		return;
	for (struct ifaddrs *a = all; a; a = a->ifa_next)
		if (a->ifa_addr && a->ifa_addr->sa_family == AF_INET &&
		    ((struct sockaddr_in *)(void *)a->ifa_addr)->sin_addr.s_addr == want.s_addr)
			net_sysctl(a->ifa_name, "forwarding", "1");
	freeifaddrs(all);
}

static int forward_add(struct priv_net *n, unsigned i, const struct msg_p_forward *m, struct err *e)
{
	if (i == n->nforwards) {
		struct net_forward *all = realloc(n->forwards, (n->nforwards + 1) * sizeof(*all));

		if (!all)
			return err_set(e, ENOMEM, "no-memory", "out of memory");
		n->forwards = all;
		int fd = forward_bind(m, e);

		if (fd < 0)
			return fd;
		all[n->nforwards++] = (struct net_forward){ .fd = fd };
	}
	struct net_forward *f = &n->forwards[i];

	f->host_port = (uint16_t)m->host_port;
	f->guest_port = (uint16_t)m->guest_port;
	f->stale = false;
	snprintf(f->proto, sizeof(f->proto), "%s", m->proto);
	snprintf(f->host_ip, sizeof(f->host_ip), "%s", m->host_ip);
	snprintf(f->guest_ip, sizeof(f->guest_ip), "%s", m->guest_ip);
	forward_in(n, m->host_ip);
	return 0;
}

static void forwards_sweep(struct priv_net *n)
{
	for (unsigned i = 0; i < n->nforwards; i++)
		if (n->forwards[i].stale)
			forward_drop(n, i--);
}

int net_forward(struct priv *p, const struct msg_p_forward *m, struct err *e)
{
	struct priv_net *n = net_get(p, m->net, e);
	unsigned i, had;
	int ret = 0;

	if (!n)
		return -ENOENT;
	if (!m->sweep &&
	    ((strcmp(m->proto, "tcp") && strcmp(m->proto, "udp")) ||
	     (*m->host_ip && !net_ip4_ok(m->host_ip)) || !net_ip4_ok(m->guest_ip) ||
	     !m->host_port || m->host_port > 65535 || !m->guest_port || m->guest_port > 65535))
		return err_set(e, EINVAL, "bad-forward",
			       "network %s: a forward is tcp or udp, HOST_IP:PORT to GUEST_IP:PORT",
			       m->net);
	had = n->nforwards;
	for (i = 0; i < n->nforwards; i++)
		if (!strcmp(n->forwards[i].proto, m->proto) &&
		    n->forwards[i].host_port == m->host_port &&
		    !strcmp(n->forwards[i].host_ip, m->host_ip))
			break;
	if (m->sweep)
		forwards_sweep(n);
	else if (!m->remove)
		ret = forward_add(n, i, m, e);
	else if (i < n->nforwards)
		forward_drop(n, i);
	if (!ret && (!m->sweep || n->nforwards != had)) {
		ret = nft_apply(p, e);
		if (ret < 0 && n->nforwards > had)
			forward_drop(n, had);
	}
	if (!ret)
		priv_ok(p, m->msg_id);
	return ret;
}
