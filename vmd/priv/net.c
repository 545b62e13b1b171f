/* net.c - bridges, addresses and taps over rtnetlink (libnl-route), in the network namespace the
 * daemon was started in.
 *
 * Only interfaces of the right kind are ever touched: a bridge by that name, a tap by that name;
 * never another that core might name. A tap lives as long as somebody holds its descriptor, so a
 * dead guest leaves none behind.
 */
#include "vmd/priv/net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_bridge.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <netlink/netlink.h>
#include <netlink/route/addr.h>
#include <netlink/route/link.h>
#include <netlink/route/link/bridge.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/hash.h"
#include "common/log.h"
#include "common/overflow.h"
#include "common/text.h"

bool net_ip4_ok(const char *text)
{
	struct in_addr a;

	return inet_pton(AF_INET, text, &a) == 1;
}

static bool net_ifname_ok(const char *s)
{
	size_t n = strlen(s);

	return n && n < IFNAMSIZ && s[0] != '.' && s[0] != '-' &&
	       strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == n;
}

struct priv_net *net_find(struct priv *p, const char *name)
{
	for (struct priv_net *n = p->nets; n; n = n->next)
		if (!strcmp(n->name, name))
			return n;
	return NULL;
}

void net_sysctl(const char *ifname, const char *key, const char *value)
{
	char path[128];

	snprintf(path, sizeof(path), "/proc/sys/net/%s/%.15s/%s",
		 strcmp(key, "disable_ipv6") ? "ipv4/conf" : "ipv6/conf", ifname, key);
	_cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, value, strlen(value)) < 0)
		log_debug("%s: %s", path, strerror(errno));
}

/* ---- rtnetlink ---- */

static struct nl_sock *net_nl(struct err *e)
{
	struct nl_sock *sk = nl_socket_alloc();
	int ret = sk ? nl_connect(sk, NETLINK_ROUTE) : -NLE_NOMEM;

	if (ret < 0) {
		err_set(e, EIO, "no-netlink", "cannot speak rtnetlink: %s", nl_geterror(ret));
		if (sk)
			nl_socket_free(sk);
		return NULL;
	}
	return sk;
}

static int net_nl_err(struct err *e, int nlerr, const char *what, const char *ifname)
{
	int num = nlerr == -NLE_EXIST				 ? EEXIST
		  : nlerr == -NLE_PERM || nlerr == -NLE_NOACCESS ? EPERM
								 : EIO;

	err_set(e, num, "netlink-failed", "interface %s: cannot %s: %s", ifname, what,
		nl_geterror(nlerr));
	if (num == EPERM)
		err_hint(e, "networks need CAP_NET_ADMIN");
	return -num;
}

static bool net_is_kind(struct nl_sock *sk, const char *ifname, const char *kind)
{
	struct rtnl_link *l = NULL;

	if (rtnl_link_get_kernel(sk, 0, ifname, &l) < 0)
		return false;
	const char *type = rtnl_link_get_type(l);
	bool yes = type && !strcmp(type, kind);

	rtnl_link_put(l);
	return yes;
}

static int net_link_up(struct nl_sock *sk, const char *ifname, uint64_t mtu, struct err *e)
{
	struct rtnl_link *l = NULL, *change = rtnl_link_alloc();
	int ret = rtnl_link_get_kernel(sk, 0, ifname, &l);

	if (!ret && change) {
		rtnl_link_set_flags(change, IFF_UP);
		if (mtu)
			rtnl_link_set_mtu(change, (unsigned)mtu);
		ret = rtnl_link_change(sk, l, change, 0);
	}
	if (l)
		rtnl_link_put(l);
	rtnl_link_put(change);
	return ret < 0 ? net_nl_err(e, ret, "be brought up", ifname) : 0;
}

static int net_link_delete(struct nl_sock *sk, const char *ifname, const char *kind, struct err *e)
{
	if (!if_nametoindex(ifname))
		return 0;
	if (!net_is_kind(sk, ifname, kind))
		return err_set(e, EPERM, "wrong-interface",
			       "interface %s is not a %s: it is left alone", ifname, kind);
	struct rtnl_link *l = rtnl_link_alloc();

	rtnl_link_set_name(l, ifname);
	int ret = rtnl_link_delete(sk, l);

	rtnl_link_put(l);
	return ret < 0 && ret != -NLE_NODEV ? net_nl_err(e, ret, "be removed", ifname) : 0;
}

/* What is ours says so in its alias: another daemon here may have a network of that name. */
static void net_alias(const struct priv *p, const char *net, char alias[96])
{
	snprintf(alias, 96, "%s network %.63s", p->instance, net);
}

static bool net_is_ours(struct nl_sock *sk, const char *ifname, const char *alias)
{
	struct rtnl_link *l = NULL;

	if (rtnl_link_get_kernel(sk, 0, ifname, &l) < 0)
		return false;
	const char *has = rtnl_link_get_ifalias(l);
	bool yes = has && !strcmp(has, alias);

	rtnl_link_put(l);
	return yes;
}

/* net_bridge_address() - locally administered, of the network's own mark: a bridge without one of its own
 * takes the lowest of its ports', and changes under its guests' ARP caches as those come and go */
static struct nl_addr *net_bridge_address(const char *alias)
{
	uint8_t sum[32];
	struct sha256 h;

	sha256_init(&h);
	sha256_add(&h, alias, strlen(alias));
	sha256_end(&h, sum);
	sum[0] = (uint8_t)((sum[0] & ~1u) | 2);
	return nl_addr_build(AF_LLC, sum, 6);
}

static int net_bridge_make(struct nl_sock *sk, const struct priv *p, const struct priv_net *n,
			   struct err *e)
{
	struct rtnl_link *l = rtnl_link_bridge_alloc();
	struct nl_addr *mac;
	char alias[96];

	net_alias(p, n->name, alias);
	mac = net_bridge_address(alias);
	if (!l || !mac) {
		rtnl_link_put(l);
		nl_addr_put(mac);
		return err_set(e, ENOMEM, "no-memory", "out of memory");
	}
	rtnl_link_set_name(l, n->bridge);
	rtnl_link_set_addr(l, mac);
	nl_addr_put(mac);
	int ret = rtnl_link_add(sk, l, NLM_F_CREATE | NLM_F_EXCL);

	rtnl_link_put(l);
	if (!ret) {
		struct rtnl_link *at = NULL, *change = rtnl_link_alloc();

		ret = rtnl_link_get_kernel(sk, 0, n->bridge, &at);
		if (!ret && change) {
			rtnl_link_set_ifalias(change, alias);
			ret = rtnl_link_change(sk, at, change, 0);
		}
		rtnl_link_put(at);
		rtnl_link_put(change);
		if (ret < 0)
			net_link_delete(sk, n->bridge, "bridge", NULL);
		return ret < 0 ? net_nl_err(e, ret, "be marked as ours", n->bridge) : 0;
	}
	if (ret == -NLE_EXIST && net_is_ours(sk, n->bridge, alias))
		return 0; /* of a daemon before this one */
	if (ret == -NLE_EXIST && net_is_kind(sk, n->bridge, "bridge")) {
		err_set(e, EEXIST, "bridge-taken",
			"network %s: there is a bridge %s already, and it is not this daemon's",
			n->name, n->bridge);
		err_hint(e,
			 "to use it as it is: vmctl net create %s --bridge %s; or --bridge with "
			 "a name that is free",
			 n->name, n->bridge);
		return -EEXIST;
	}
	return net_nl_err(e, ret, "be made a bridge", n->bridge);
}

static int net_address(struct nl_sock *sk, const char *ifname, const char *cidr, struct err *e)
{
	struct nl_addr *local = NULL;
	struct rtnl_addr *a = rtnl_addr_alloc();
	int ret = a ? nl_addr_parse(cidr, AF_INET, &local) : -NLE_NOMEM;

	if (!ret) {
		rtnl_addr_set_ifindex(a, (int)if_nametoindex(ifname));
		rtnl_addr_set_local(a, local);
		ret = rtnl_addr_add(sk, a, 0);
	}
	if (local)
		nl_addr_put(local);
	if (a)
		rtnl_addr_put(a);
	return ret < 0 && ret != -NLE_EXIST ? net_nl_err(e, ret, "be given its address", ifname)
					    : 0;
}

bool net_uplink(char ifname[IFNAMSIZ])
{
	FILE *f = fopen("/proc/net/route", "re");
	char line[256], name[IFNAMSIZ];
	unsigned dst, mask;
	bool found = false;

	while (f && !found && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%15s %x %*x %*x %*d %*d %*d %x", name, &dst, &mask) == 3 &&
		    !dst && !mask) {
			snprintf(ifname, IFNAMSIZ, "%s", name);
			found = true;
		}
	}
	if (f)
		fclose(f);
	return found;
}

/* net_port_isolate() - a port of a bridge that exchanges nothing with others of its kind; libnl has
 * no word for it. */
static int net_port_isolate(struct nl_sock *sk, const char *ifname, struct err *e)
{
	struct ifinfomsg link = { .ifi_family = AF_BRIDGE,
				  .ifi_index = (int)if_nametoindex(ifname) };
	struct nl_msg *msg = nlmsg_alloc_simple(RTM_SETLINK, 0);
	struct nlattr *port = NULL;
	int ret = -NLE_NOMEM;

	if (msg && nlmsg_append(msg, &link, sizeof(link), NLMSG_ALIGNTO) == 0 &&
	    (port = nla_nest_start(msg, IFLA_PROTINFO | NLA_F_NESTED)) &&
	    nla_put_u8(msg, IFLA_BRPORT_ISOLATED, 1) == 0) {
		nla_nest_end(msg, port);
		ret = nl_send_sync(sk, msg); /* frees it */
		msg = NULL;
	}
	nlmsg_free(msg);
	return ret < 0 ? net_nl_err(e, ret, "be isolated from its bridge's other ports", ifname)
		       : 0;
}

/* ---- networks ---- */

static void net_free(struct priv_net *n)
{
	if (n) {
		dhcp_unwatch(n);
		forwards_free(n);
		free(n->hosts);
	}
	free(n);
}

static int net_check(const struct msg_p_net_up *m, struct err *e)
{
	unsigned bits;
	char ip[20];

	if (!name_valid(m->net) || !net_ifname_ok(m->bridge))
		return err_set(e, EINVAL, "bad-name", "network %s: \"%s\" is no name for a bridge",
			       m->net, m->bridge);
	if (*m->cidr4 && (sscanf(m->cidr4, "%15[0-9.]/%u", ip, &bits) != 2 || !net_ip4_ok(ip) ||
			  bits < 8 || bits > 30))
		return err_set(e, EINVAL, "bad-address",
			       "network %s: \"%s\" is not an address with prefix, as 10.1.0.1/24",
			       m->net, m->cidr4);
	if (m->dhcp && (!*m->cidr4 || !net_ip4_ok(m->dhcp_first) || !net_ip4_ok(m->dhcp_last)))
		return err_set(e, EINVAL, "bad-address",
			       "network %s: DHCP needs an address and a range", m->net);
	if (m->mtu && (m->mtu < 576 || m->mtu > 65535))
		return err_set(e, EINVAL, "bad-mtu",
			       "network %s: MTU %llu is not within 576 to 65,535", m->net,
			       (unsigned long long)m->mtu);
	if (*m->domain && !name_valid(m->domain))
		return err_set(e, EINVAL, "bad-name", "network %s: \"%s\" is no domain name",
			       m->net, m->domain);
	return 0;
}

static void net_fill(struct priv_net *n, const struct msg_p_net_up *m)
{
	snprintf(n->name, sizeof(n->name), "%s", m->net);
	snprintf(n->bridge, sizeof(n->bridge), "%s", m->bridge);
	snprintf(n->cidr4, sizeof(n->cidr4), "%s", m->cidr4);
	snprintf(n->domain, sizeof(n->domain), "%s", m->domain);
	snprintf(n->dhcp_first, sizeof(n->dhcp_first), "%s", m->dhcp_first);
	snprintf(n->dhcp_last, sizeof(n->dhcp_last), "%s", m->dhcp_last);
	n->made_bridge = m->make_bridge;
	n->nat = m->nat;
	n->dhcp = m->dhcp;
	n->isolated = m->isolated;
	n->mtu = m->mtu;
}

static int net_up_bridge(struct nl_sock *sk, const struct priv *p, const struct priv_net *n,
			 struct err *e)
{
	int ret = n->made_bridge ? net_bridge_make(sk, p, n, e) : 0;

	if (!ret && !net_is_kind(sk, n->bridge, "bridge")) {
		ret = err_set(e, ENODEV, "no-bridge", "network %s: there is no bridge %s", n->name,
			      n->bridge);
		err_hint(e, "another kind of interface has that name; choose another: vmctl net "
			    "create --bridge NAME");
	}
	/* an administrator's bridge keeps its own address and state */
	if (!ret && n->made_bridge) {
		net_sysctl(n->bridge, "disable_ipv6", "1");
		ret = net_link_up(sk, n->bridge, n->mtu, e);
		if (!ret && *n->cidr4)
			ret = net_address(sk, n->bridge, n->cidr4, e);
	}
	return ret;
}

static void net_unlink(struct priv *p, struct priv_net *n)
{
	for (struct priv_net **at = &p->nets; *at; at = &(*at)->next)
		if (*at == n) {
			*at = n->next;
			break;
		}
}

int net_up(struct priv *p, const struct msg_p_net_up *m, struct err *e)
{
	char uplink[IFNAMSIZ];
	int ret = net_check(m, e);

	if (ret < 0)
		return ret;
	if (!p->root) {
		err_set(e, EPERM, "needs-root", "network %s: a rootless daemon makes no bridges",
			m->net);
		err_hint(e, "run vmd as root, or start the guest without --net");
		return -EPERM;
	}
	struct nl_sock *sk = net_nl(e);

	if (!sk)
		return -EIO;
	struct priv_net *n = net_find(p, m->net);
	bool made = !n;

	if (!n) {
		n = calloc(1, sizeof(*n));
		if (!n) {
			nl_socket_free(sk);
			return err_set(e, ENOMEM, "no-memory", "out of memory");
		}
		dhcp_init(p, n);
		n->next = p->nets;
		p->nets = n;
	}
	net_fill(n, m);
	for (unsigned i = 0; i < n->nforwards; i++)
		n->forwards[i].stale = true; /* core tells them again */
	/* 2: make it where it is missing; one that is there is an administrator's, whose address
	 * and end are not ours */
	if (m->make_bridge == 2)
		n->made_bridge = !net_is_kind(sk, n->bridge, "bridge");
	ret = net_up_bridge(sk, p, n, e);
	if (!ret && n->nat) {
		net_sysctl(n->bridge, "forwarding", "1");
		if (net_uplink(uplink))
			net_sysctl(uplink, "forwarding", "1");
		else
			log_warn("network %s: no default route here: NAT leads nowhere yet",
				 n->name);
	}
	if (!ret)
		ret = nft_apply(p, e);
	if (!ret && n->dhcp)
		ret = dhcp_start(p, n, e);
	if (ret < 0 && made) {
		/* nothing half-made stays */
		dhcp_stop(p, n);
		net_unlink(p, n);
		if (n->made_bridge && e->num != EEXIST)
			net_link_delete(sk, n->bridge, "bridge", NULL);
		nft_apply(p, NULL);
		net_free(n);
	}
	nl_socket_free(sk);
	if (!ret)
		priv_result(p, m->msg_id, n->made_bridge, -1, -1, NULL);
	return ret;
}

int net_down(struct priv *p, const struct msg_p_net_down *m, struct err *e)
{
	struct priv_net *n = net_find(p, m->net);
	struct nl_sock *sk;
	char alias[96];
	int ret = 0;

	if (!name_valid(m->net) || !net_ifname_ok(m->bridge))
		return err_set(e, EINVAL, "bad-name", "network \"%s\" on \"%s\": bad name", m->net,
			       m->bridge);
	sk = net_nl(e);
	if (!sk)
		return -EIO;
	if (n) {
		dhcp_stop(p, n);
		net_unlink(p, n);
	}
	dhcp_forget(p, m->net);
	/* by its own word: core may not have heard whether it was made, nor we of the network */
	net_alias(p, m->net, alias);
	if (net_is_ours(sk, m->bridge, alias))
		ret = net_link_delete(sk, m->bridge, "bridge", e);
	nl_socket_free(sk);
	if (!ret)
		ret = p->nets ? nft_apply(p, e) : (nft_remove(p), 0);
	net_free(n);
	if (!ret)
		priv_ok(p, m->msg_id);
	return ret;
}

/* net_fini() - the daemon ends, the guests run on: bridges and rules stay; dnsmasq is started anew
 * by the next one. */
void net_fini(struct priv *p)
{
	while (p->nets) {
		struct priv_net *n = p->nets;

		p->nets = n->next;
		net_free(n);
	}
}

/* ---- taps ---- */

#define NET_QUEUES_MAX 8u

static int net_tap_open(const char *ifname, bool multi, struct err *e)
{
	_cleanup_close_ int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	struct ifreq ifr = { .ifr_flags = (short)(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR |
						  (multi ? IFF_MULTI_QUEUE : 0)) };

	if (fd < 0) {
		err_set(e, errno, "no-tun", "/dev/net/tun: %s", strerror(errno));
		err_hint(e, "modprobe tun");
		return -e->num;
	}
	memcpy(ifr.ifr_name, ifname, strlen(ifname) + 1);
	if (ioctl(fd, TUNSETIFF, &ifr) < 0) {
		if (errno == EBUSY)
			return err_set(e, EBUSY, "tap-busy", "tap %s is in use by another process",
				       ifname);
		err_set(e, errno, "tap-failed", "tap %s of /dev/net/tun: %s", ifname,
			strerror(errno));
		err_hint(e, "ls -l /dev/net/tun (a character device, 10, 200); modprobe tun");
		return -e->num;
	}
	return take_fd(&fd);
}

static int net_tap_attach(struct priv *p, const char *ifname, const struct msg_p_tap_add *m,
			  struct err *e)
{
	struct nl_sock *sk = net_nl(e);
	int ret = sk ? 0 : -EIO;

	if (!ret && !net_is_kind(sk, m->bridge, "bridge"))
		ret = err_set(e, ENODEV, "no-bridge", "network %s: there is no bridge %s", m->net,
			      m->bridge);
	if (!ret) {
		int nl = rtnl_link_enslave_ifindex(sk, (int)if_nametoindex(m->bridge),
						   (int)if_nametoindex(ifname));

		/* the bridge answers EXFULL when its 1,024 ports are taken; libnl has no word for
		 * that */
		if (nl < 0) {
			ret = err_set(
			    e, EXFULL, "bridge-full",
			    "network %s: bridge %s takes no more ports (%s); a bridge has 1,024",
			    m->net, m->bridge, nl_geterror(nl));
			err_hint(e, "put the guest on another network: vmctl net create");
		}
	}
	const struct priv_net *n = net_find(p, m->net);

	if (!ret && n && n->isolated)
		ret = net_port_isolate(sk, ifname, e);
	net_sysctl(ifname, "disable_ipv6", "1");
	if (!ret)
		ret = net_link_up(sk, ifname, m->mtu, e);
	if (sk)
		nl_socket_free(sk);
	return ret;
}

int net_tap_add(struct priv *p, const struct msg_p_tap_add *m, struct err *e)
{
	unsigned queues = m->queues ? (unsigned)m->queues : 1, nvhost = 0;
	int fds[2 * NET_QUEUES_MAX], n = 0, ret = 0;
	struct msg_result res = { .fd = -1, .fd2 = -1 };
	struct wire_buf b = { 0 };

	if (!p->root)
		return err_set(e, EPERM, "needs-root", "a rootless daemon makes no network ports");
	if (!net_ifname_ok(m->ifname) || !net_ifname_ok(m->bridge) || m->queues > NET_QUEUES_MAX)
		return err_set(e, EINVAL, "bad-name",
			       "tap \"%s\" on \"%s\": names of 1 to 15 letters, at most %u queues",
			       m->ifname, m->bridge, NET_QUEUES_MAX);
	/* a tap goes with its last holder: one that is there is somebody's, and several queues
	 * would attach to it without a word */
	if (if_nametoindex(m->ifname)) {
		err_set(e, EBUSY, "tap-busy", "tap %s: an interface of that name is there already",
			m->ifname);
		err_hint(e,
			 "ip -d link show %s tells what it is; a guest with a new UUID gets "
			 "another name",
			 m->ifname);
		return -EBUSY;
	}
	for (unsigned i = 0; i < queues && !ret; i++) {
		ret = net_tap_open(m->ifname, queues > 1, e);
		if (ret >= 0) {
			fds[n++] = ret;
			ret = 0;
		}
	}
	if (!ret)
		ret = net_tap_attach(p, m->ifname, m, e);
	for (unsigned i = 0; i < queues && !ret && m->vhost; i++) {
		int fd = open("/dev/vhost-net", O_RDWR | O_CLOEXEC);

		if (fd < 0)
			break;
		fds[n++] = fd;
		nvhost++;
	}
	if (!ret) {
		/* value: how many of the descriptors, the last ones, are vhost's */
		res.value = nvhost;
		res.fd = fds[0];
		res.fd2 = n > 1 ? fds[1] : -1;
		snprintf(res.text, sizeof(res.text), "%s", m->ifname);
		ret = msg_result_encode(&res, m->msg_id, &b);
		for (int i = 2; i < n && ret >= 0; i++)
			ret = wire_put_fd(&b, fds[i], false);
		ret = ret < 0
			  ? err_set(e, -ret, "tap-failed", "tap %s: %s", m->ifname, strerror(-ret))
			  : wire_conn_send(p->core.conn, &b);
	}
	wire_buf_clear(&b);
	while (n)
		close(fds[--n]);
	return ret;
}

int net_tap_del(struct priv *p, const struct msg_p_tap_del *m, struct err *e)
{
	struct nl_sock *sk = net_nl(e);
	int ret = !sk ? -EIO
		  : net_ifname_ok(m->ifname)
		      ? net_link_delete(sk, m->ifname, "tun", e)
		      : err_set(e, EINVAL, "bad-name", "\"%s\" is no name for a tap", m->ifname);

	if (sk)
		nl_socket_free(sk);
	if (!ret)
		priv_ok(p, m->msg_id);
	return ret;
}
