# vmd: build, test, demo. `make help` lists the targets. Out-of-tree builds: make BUILD=build-x.
# Layering is enforced here: each folder is compiled against its own include tree ($(BUILD)/inc/FOLDER),
# which holds links to just the folders it may include (ARCHITECTURE.md, "Folders").

BUILD   ?= build
CC      ?= gcc
SAN     ?=
OPT     ?= -O2
DEPS_PKGS := $(shell sed 's/\#.*//' tests/deps.txt 2>/dev/null)

WARN := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wundef \
        -Wimplicit-fallthrough -Wno-unused-parameter -Werror
HARDEN := -fPIE -fstack-protector-strong -fcf-protection
ifeq ($(SAN),)
HARDEN += -D_FORTIFY_SOURCE=2
endif
CFLAGS_ALL := -std=gnu11 -D_GNU_SOURCE -g $(OPT) $(WARN) $(HARDEN) $(SAN) $(CFLAGS)
LDFLAGS_ALL := -pie -Wl,-z,relro,-z,now -pthread $(SAN) $(LDFLAGS)

# folder: what it may see (whole folders), plus single files
SEES_common          := common
SEES_hypervisor-core := common hypervisor-core
SEES_storage         := common storage
SEES_devices         := common hypervisor-core devices storage/blockdev.h
SEES_vmd             := common hypervisor-core devices storage vmd
SEES_api             := common api vmd/proto.h vmd/proto.def
SEES_vmctl           := common vmctl
SEES_tests           := common hypervisor-core storage devices vmd api vmctl tests
FOLDERS := common hypervisor-core storage devices vmd api vmctl tests

srcs = $(sort $(shell find $(1) -name '*.c' 2>/dev/null))
objs = $(patsubst %.c,$(BUILD)/obj/%.o,$(1))

COMMON_OBJS  := $(call objs,$(call srcs,common))
CORE_OBJS    := $(call objs,$(call srcs,hypervisor-core))
STORAGE_OBJS := $(call objs,$(call srcs,storage))
DEVICES_OBJS := $(call objs,$(call srcs,devices))
API_OBJS     := $(call objs,$(call srcs,api))
PROTO_OBJS   := $(call objs,$(wildcard vmd/proto*.c))
GUEST_OBJS   := $(call objs,$(call srcs,vmd/guest))
IMAGE_OBJS   := $(call objs,$(call srcs,vmd/image))
VMD_OBJS     := $(call objs,$(filter-out vmd/proto%.c,$(wildcard vmd/*.c)) $(call srcs,vmd/core) $(call srcs,vmd/priv))
VMCTL_OBJS   := $(call objs,$(call srcs,vmctl))

L := $(BUILD)/lib
LIB_COMMON := $(L)/libcommon.a
LIB_CORE := $(L)/libcore.a
LIB_STORAGE := $(L)/libstorage.a
LIB_DEVICES := $(L)/libdevices.a
LIB_PROTO := $(L)/libproto.a

# libraries by binary (Debian packages; reasons in ARCHITECTURE.md)
LIBS_STORAGE := -lz -lzstd
LIBS_VMD := -lmicrohttpd -ljansson -lsqlite3 -lwslay -lnl-3 -lnl-route-3 -lnftables -lcap-ng
LIBS_VMCTL := -ljansson

all: bins
bins: $(BUILD)/vmd $(BUILD)/vmd-guest $(BUILD)/vmd-image $(BUILD)/vmctl

$(BUILD)/inc/%/.stamp: Makefile
	@rm -rf $(@D) && mkdir -p $(@D)
	@for s in $(SEES_$*); do mkdir -p $(@D)/$$(dirname $$s); ln -sfn $(CURDIR)/$$s $(@D)/$$s; done
	@mkdir -p $(CURDIR)/$(BUILD)/gen && ln -sfn $(CURDIR)/$(BUILD)/gen $(@D)/gen
	@touch $@

define folder_rules
$(BUILD)/obj/$(1)/%.o: $(1)/%.c $(BUILD)/inc/$(1)/.stamp
	@mkdir -p $$(@D)
	$$(if $$(V),,@echo "  CC      $$<";) $$(CC) $$(CFLAGS_ALL) $$(CFLAGS_$(1)) -I$(BUILD)/inc/$(1) -MMD -MP -c -o $$@ $$<
endef
$(foreach f,$(FOLDERS),$(eval $(call folder_rules,$(f))))

$(LIB_COMMON): $(COMMON_OBJS)
$(LIB_CORE): $(CORE_OBJS)
$(LIB_STORAGE): $(STORAGE_OBJS)
$(LIB_DEVICES): $(DEVICES_OBJS)
$(LIB_PROTO): $(PROTO_OBJS)
$(L)/%.a:
	@mkdir -p $(@D)
	@rm -f $@
	@$(AR) rcs $@ $^

LINK = @echo "  LINK    $@"; $(CC) $(LDFLAGS_ALL) -o $@
$(BUILD)/vmd: $(VMD_OBJS) $(API_OBJS) $(LIB_PROTO) $(LIB_COMMON)
	$(LINK) $(VMD_OBJS) $(API_OBJS) $(LIB_PROTO) $(LIB_COMMON) $(LIBS_VMD)
$(BUILD)/vmd-guest: $(GUEST_OBJS) $(LIB_DEVICES) $(LIB_STORAGE) $(LIB_CORE) $(LIB_PROTO) $(LIB_COMMON)
	$(LINK) $(GUEST_OBJS) $(LIB_DEVICES) $(LIB_CORE) $(LIB_STORAGE) $(LIB_PROTO) $(LIB_COMMON) $(LIBS_STORAGE) -lm
$(BUILD)/vmd-image: $(IMAGE_OBJS) $(LIB_STORAGE) $(LIB_PROTO) $(LIB_COMMON)
	$(LINK) $(IMAGE_OBJS) $(LIB_STORAGE) $(LIB_PROTO) $(LIB_COMMON) $(LIBS_STORAGE)
$(BUILD)/vmctl: $(VMCTL_OBJS) $(LIB_COMMON)
	$(LINK) $(VMCTL_OBJS) $(LIB_COMMON) $(LIBS_VMCTL)

# unit tests: tests/unit/FOLDER/NAME.c → $(BUILD)/tests/unit/FOLDER/NAME, linked against all libraries
UNIT_SRCS := $(call srcs,tests/unit)
UNIT_BINS := $(patsubst %.c,$(BUILD)/%,$(UNIT_SRCS))
TEST_LIBS := $(LIB_DEVICES) $(LIB_CORE) $(LIB_STORAGE) $(LIB_PROTO) $(LIB_COMMON)
$(BUILD)/tests/unit/%: $(BUILD)/obj/tests/unit/%.o $(TEST_LIBS)
	@mkdir -p $(@D)
	$(LINK) $< $(UNIT_EXTRA_$(notdir $*)) $(TEST_LIBS) -lcmocka $(LIBS_STORAGE) -lm
unit: $(UNIT_BINS)

clean:
	rm -rf $(BUILD)

.PHONY: all bins unit clean
.SECONDARY:
-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)
