/* rtc.h - MC146818 real-time clock and CMOS memory. See rtc.c. */
#ifndef DEVICES_RTC_H
#define DEVICES_RTC_H

#include <stdint.h>

#include "common/err.h"
#include "hypervisor-core/irq.h"

#define RTC_CENTURY 0x32u /* CMOS byte, named in the FADT */

struct rtc;

/* rtc_new() - ports 0x70-0x71; @irq8 is ISA line 8. Owned by the VM. */
struct rtc *rtc_new(struct vm *vm, const struct irq *irq8, struct err *e);
/* rtc_memory_set() - the memory sizes where firmware looks for them (CMOS 15h-18h, 30h-35h,
 * 5bh-5dh). */
void rtc_memory_set(struct rtc *r, uint64_t below_4g_bytes, uint64_t above_4g_bytes);

#endif
