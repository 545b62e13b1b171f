/* pace.h - a rate limit of operations and bytes a second, as a schedule: who asks is told when the
 * next request may go, and what it cost is entered when it went.
 *
 * A tenth of a second's worth may go at once. Limits change at any time; what is owed under an old
 * one is not carried into the new. No locking, no clock: both are the caller's.
 */
#ifndef DEVICES_PACE_H
#define DEVICES_PACE_H

#include <stdint.h>

#include "common/overflow.h"
#include "common/units.h"

#define PACE_BURST_NS (NS_PER_S / 10)

struct pace {
	uint64_t iops, bps; /* 0 = no limit */
	uint64_t next_op_ns, next_byte_ns;
};

static inline void pace_set(struct pace *p, uint64_t iops, uint64_t bps)
{
	*p = (struct pace){ .iops = iops, .bps = bps };
}

/* pace_until() - when the next request may go; at most @now_ns: it may. */
static inline uint64_t pace_until(const struct pace *p)
{
	return MAX(p->iops ? p->next_op_ns : 0, p->bps ? p->next_byte_ns : 0);
}

static inline uint64_t pace_after(uint64_t next_ns, uint64_t now_ns, uint64_t cost_ns)
{
	uint64_t floor_ns = now_ns > PACE_BURST_NS ? now_ns - PACE_BURST_NS : 0;

	return MAX(next_ns, floor_ns) + cost_ns;
}

static inline void pace_charge(struct pace *p, uint64_t now_ns, uint64_t bytes)
{
	if (p->iops)
		p->next_op_ns = pace_after(p->next_op_ns, now_ns, NS_PER_S / p->iops);
	if (p->bps)
		p->next_byte_ns =
		    pace_after(p->next_byte_ns, now_ns,
			       (uint64_t)((unsigned __int128)bytes * NS_PER_S / p->bps));
}

#endif
