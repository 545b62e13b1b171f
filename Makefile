# vmd: build, test, demo. `make help` lists the targets. Out-of-tree builds: make BUILD=build-x.
# Layering is enforced here: each folder is compiled against its own include tree ($(INC)/FOLDER),
# which holds links to just the folders it may include (ARCHITECTURE.md, "Folders").

BUILD   ?= build
INC     := build/inc
CC      ?= gcc
SAN     ?=
OPT     ?= -O2

WARN := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wundef \
        -Wimplicit-fallthrough -Wno-unused-parameter -Werror
# clang only: a flexible array in a wrapper is how KVM's variable-length structs are built on the stack, and SQL is written as adjacent strings
ifneq ($(findstring clang,$(CC)),)
WARN += -Wno-gnu-variable-sized-type-not-at-end -Wno-string-concatenation -Wno-atomic-alignment
LIBS_CC := -latomic
endif
# sanitizers hide from gcc what is set where; the plain build checks it
ifneq ($(SAN),)
ifeq ($(findstring clang,$(CC)),)
WARN += -Wno-maybe-uninitialized
endif
endif
HARDEN := -fPIE -fstack-protector-strong -fcf-protection
ifeq ($(SAN),)
HARDEN += -D_FORTIFY_SOURCE=2
endif
CFLAGS_ALL := -std=gnu11 -D_GNU_SOURCE -g $(OPT) $(WARN) $(HARDEN) $(SAN) $(CFLAGS)
# a jailed program has no loader and no libraries around it
ifeq ($(SAN),)
LDFLAGS_GUEST := -static-pie
endif
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

# every folder of code becomes one archive; a program is its main.c plus the archives it needs
no_main = $(filter-out %/main.c,$(1))
COMMON_SRCS  := $(call srcs,common)
CORE_SRCS    := $(call srcs,hypervisor-core)
STORAGE_SRCS := $(call srcs,storage)
DEVICES_SRCS := $(call srcs,devices)
API_SRCS     := $(call srcs,api)
PROTO_SRCS   := $(wildcard vmd/proto*.c)
GUEST_SRCS   := $(call no_main,$(call srcs,vmd/guest))
IMAGE_SRCS   := $(call no_main,$(call srcs,vmd/image))
VMD_SRCS     := $(call no_main,$(filter-out vmd/proto%.c,$(wildcard vmd/*.c)) $(call srcs,vmd/core) $(call srcs,vmd/priv))
VMCTL_SRCS   := $(call no_main,$(call srcs,vmctl))

L := $(BUILD)/lib
lib = $(L)/lib$(1).a
LIBS_ALL_A := $(foreach l,api vmd guest image vmctl devices core storage proto common,$(call lib,$(l)))

# system libraries by program (Debian packages; reasons in ARCHITECTURE.md)
LIBS_STORAGE := -lz -lzstd -llz4
LIBS_VMD := -ljansson -lsqlite3 -lwslay -lnl-3 -lnl-route-3 -lnftables -lcap-ng
CFLAGS_vmd := -isystem /usr/include/libnl3
LIBS_VMCTL := -ljansson -lwslay
LIBS_TEST = -lcmocka $(LIBS_STORAGE) $(LIBS_VMD) -lm $(LIBS_CC)

all: bins
bins: $(BUILD)/vmd $(BUILD)/vmd-guest $(BUILD)/vmd-image $(BUILD)/vmctl

# shared by all build folders, so that a compiler cache serves them all
$(INC)/%/.stamp: Makefile
	@mkdir -p $(@D)
	@for s in $(SEES_$*); do mkdir -p $(@D)/$$(dirname $$s); ln -sfn $(CURDIR)/$$s $(@D)/$$s; done
	@touch $@

define folder_rules
$(BUILD)/obj/$(1)/%.o: $(1)/%.c $(INC)/$(1)/.stamp
	@mkdir -p $$(@D)
	$(if $(V),,@echo "  CC      $$<";) $$(CC) $$(CFLAGS_ALL) $$(CFLAGS_$(1)) -I$(INC)/$(1) -MMD -MP -c -o $$@ $$<
endef
$(foreach f,$(FOLDERS),$(eval $(call folder_rules,$(f))))

define lib_rule
$(call lib,$(1)): $(call objs,$(2))
endef
$(eval $(call lib_rule,common,$(COMMON_SRCS)))
$(eval $(call lib_rule,core,$(CORE_SRCS)))
$(eval $(call lib_rule,storage,$(STORAGE_SRCS)))
$(eval $(call lib_rule,devices,$(DEVICES_SRCS)))
$(eval $(call lib_rule,api,$(API_SRCS)))
$(eval $(call lib_rule,proto,$(PROTO_SRCS)))
$(eval $(call lib_rule,guest,$(GUEST_SRCS)))
$(eval $(call lib_rule,image,$(IMAGE_SRCS)))
$(eval $(call lib_rule,vmd,$(VMD_SRCS)))
$(eval $(call lib_rule,vmctl,$(VMCTL_SRCS)))
$(L)/%.a:
	@mkdir -p $(@D)
	@rm -f $@
	@$(AR) rcs $@ $^

# link(main object, archives, libraries)
LINK = $(if $(V),,@echo "  LINK    $@";) $(CC) $(LDFLAGS_ALL) -o $@
group = -Wl,--as-needed -Wl,--start-group $(1) -Wl,--end-group $(2)
A_VMD   := $(foreach l,vmd api proto common,$(call lib,$(l)))
A_GUEST := $(foreach l,guest devices core storage proto common,$(call lib,$(l)))
A_IMAGE := $(foreach l,image storage proto common,$(call lib,$(l)))
A_VMCTL := $(foreach l,vmctl common,$(call lib,$(l)))
$(BUILD)/vmd: $(BUILD)/obj/vmd/main.o $(A_VMD)
	$(LINK) $< $(call group,$(A_VMD),$(LIBS_VMD))
$(BUILD)/vmd-guest: $(BUILD)/obj/vmd/guest/main.o $(A_GUEST)
	$(LINK) $(LDFLAGS_GUEST) $< $(call group,$(A_GUEST),$(LIBS_STORAGE) -lm $(LIBS_CC))
$(BUILD)/vmd-image: $(BUILD)/obj/vmd/image/main.o $(A_IMAGE)
	$(LINK) $(LDFLAGS_GUEST) $< $(call group,$(A_IMAGE),$(LIBS_STORAGE))
$(BUILD)/vmctl: $(BUILD)/obj/vmctl/main.o $(A_VMCTL)
	$(LINK) $< $(call group,$(A_VMCTL),$(LIBS_VMCTL))

# ---- tests: programs tests/KIND/.../NAME_test.c (cmocka), tests/fuzz/fuzz_NAME.c, tools and benches ----
# A test links against every archive; the linker takes what it needs.
TEST_PROGS := $(patsubst %.c,$(BUILD)/%,$(shell find tests/unit tests/native tests/soft -name '*_test.c' 2>/dev/null))
FUZZ_NAMES := $(patsubst tests/fuzz/%.c,%,$(wildcard tests/fuzz/fuzz_*.c))
TOOL_PROGS := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/tools/*.c tests/bench/*.c))

# Unit tests of a folder link what that folder may see; helpers that several tests of a folder share lie beside them
# without the _test suffix.
TESTS_common          := common
TESTS_hypervisor-core := core common
TESTS_storage         := storage common
TESTS_devices         := devices core storage common
TESTS_vmd             := vmd guest image devices core storage proto common
TESTS_api             := api proto common
TESTS_vmctl           := vmctl api proto common
define test_rules
TH_$(1) := $(call objs,$(shell find tests/$(2) -name '*.c' ! -name '*_test.c' 2>/dev/null))
TA_$(1) := $(foreach l,$(3),$(call lib,$(l)))
$(patsubst %.c,$(BUILD)/%,$(shell find tests/$(2) -name '*_test.c' 2>/dev/null)): $(BUILD)/%: $(BUILD)/obj/%.o $$(TH_$(1)) $$(TA_$(1))
	@mkdir -p $$(@D)
	$$(LINK) $$< $$(TH_$(1)) $$(call group,$$(TA_$(1)),$$(LIBS_TEST))
endef
$(foreach f,$(filter-out tests,$(FOLDERS)),$(eval $(call test_rules,$(f),unit/$(f),$(TESTS_$(f)))))
$(eval $(call test_rules,native,native,$(TESTS_devices)))
$(eval $(call test_rules,soft,soft,$(TESTS_devices)))
$(TOOL_PROGS): $(BUILD)/%: $(BUILD)/obj/%.o $(LIBS_ALL_A)
	@mkdir -p $(@D)
	$(LINK) $< $(call group,$(LIBS_ALL_A),$(LIBS_TEST))
$(BUILD)/tests/fuzz/fuzz_%: $(BUILD)/obj/tests/fuzz/fuzz_%.o $(BUILD)/obj/tests/fuzz/replay_main.o $(LIBS_ALL_A)
	@mkdir -p $(@D)
	$(LINK) $(filter %.o,$^) $(call group,$(LIBS_ALL_A),$(LIBS_TEST))
# jails itself, so it is linked as the jailed programs are
$(BUILD)/tests/jail/jail_battery: $(BUILD)/obj/tests/jail/jail_battery.o $(foreach l,vmd guest devices core storage proto common,$(call lib,$(l)))
	@mkdir -p $(@D)
	$(LINK) $(LDFLAGS_GUEST) $< $(call group,$(filter %.a,$^),$(LIBS_STORAGE) -lm)
tests: $(if $(SAN),,$(BUILD)/tests/jail/jail_battery) $(TEST_PROGS) $(TOOL_PROGS) $(patsubst %,$(BUILD)/tests/fuzz/%,$(FUZZ_NAMES))

deps:
	@tests/deps

# quiet but complete build with what is missing installed first
ready:
	@tests/deps
	@$(MAKE) --no-print-directory -j$(JOBS) bins tests

ready-bins:
	@tests/deps
	@$(MAKE) --no-print-directory -j$(JOBS) bins

JOBS ?= 2
# stock kernels for the tests that boot them; without them those tests are skipped and say so
kernels: deps
	@tests/lab/kernels .lab/kernels cloud generic || true

check: ready kernels
	@tests/run $(BUILD) $(KIND)

SAN_FLAGS := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
asan:
	@$(MAKE) --no-print-directory BUILD=build-asan OPT=-O1 SAN="$(SAN_FLAGS)" KIND="$(or $(KIND),unit fuzz)" check
tsan:
	@TSAN_OPTIONS="suppressions=$(CURDIR)/tests/tsan.supp" UNIT_TIMEOUT=1200 $(MAKE) --no-print-directory BUILD=build-tsan OPT=-O1 SAN="-fsanitize=thread -Wno-tsan" KIND="$(or $(KIND),unit)" check

# `make fuzz` replays every corpus under ASan; `make fuzz T=60` also explores each target T seconds
FUZZ_BUILD := build-fuzz
$(FUZZ_BUILD)/explore/fuzz_%: $(FUZZ_BUILD)/obj/tests/fuzz/fuzz_%.o $(patsubst $(BUILD)/%,$(FUZZ_BUILD)/%,$(LIBS_ALL_A))
	@mkdir -p $(@D)
	@echo "  LINK    $@"; $(CC) -pie -pthread $(SAN) -fsanitize=fuzzer -o $@ $< $(call group,$(patsubst $(BUILD)/%,$(FUZZ_BUILD)/%,$(LIBS_ALL_A)),$(LIBS_TEST))
fuzz-explorers: $(patsubst %,$(FUZZ_BUILD)/explore/%,$(FUZZ_NAMES))
fuzz:
	@tests/deps
	@$(MAKE) --no-print-directory -j$(JOBS) BUILD=$(FUZZ_BUILD) CC=clang-14 OPT=-O1 \
		SAN="-fsanitize=address,undefined -fno-sanitize-recover=undefined" CFLAGS="-fsanitize=fuzzer-no-link $(CFLAGS)" fuzz-explorers
	@[ -z "$(T)" ] || $(MAKE) --no-print-directory -j$(JOBS) $(BUILD)/tests/soft/differential_test $(BUILD)/tests/tools/softsteps
	@tests/fuzz/explore $(FUZZ_BUILD) $(or $(T),0) $(BUILD)

lint:
	@tests/deps
	@tests/lint
lab: ready
	@tests/lab/run $(BUILD)
lab-shell: ready
	@tests/lab/run $(BUILD) --shell
bench: ready
	@tests/bench/run $(BUILD) $(ONLY)
bench-crash: $(BUILD)/tests/unit/storage/qcow2_crash_test
	VMD_TEST_LONG=1 $<
bench-table:
	@$(MAKE) --no-print-directory -s bench ONLY=$(ONLY) | tests/bench/table
demo: ready-bins
	@tests/demo/demo $(BUILD)
demo-daemon: ready-bins
	@tests/demo/demo $(BUILD) --daemon
demo-stop:
	@tests/demo/demo $(BUILD) --stop
cover:
	@tests/deps
	@$(MAKE) --no-print-directory BUILD=build-cover OPT="-O0 --coverage" LDFLAGS=--coverage KIND="unit fuzz" check
	@tests/cover build-cover

PREFIX ?= /usr
install: bins
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/sbin $(DESTDIR)$(PREFIX)/lib/vmd $(DESTDIR)/etc/vmd \
		$(DESTDIR)$(PREFIX)/lib/systemd/system $(DESTDIR)$(PREFIX)/lib/sysusers.d $(DESTDIR)$(PREFIX)/lib/tmpfiles.d \
		$(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/man/man5 $(DESTDIR)$(PREFIX)/share/man/man8 \
		$(DESTDIR)$(PREFIX)/share/bash-completion/completions
	install -m 755 $(BUILD)/vmd $(DESTDIR)$(PREFIX)/sbin/vmd
	install -m 755 $(BUILD)/vmctl $(DESTDIR)$(PREFIX)/bin/vmctl
	install -m 755 $(BUILD)/vmd-guest $(BUILD)/vmd-image $(DESTDIR)$(PREFIX)/lib/vmd/
	install -m 644 systemd/*.service systemd/*.socket $(DESTDIR)$(PREFIX)/lib/systemd/system/
	install -m 644 systemd/vmd.sysusers $(DESTDIR)$(PREFIX)/lib/sysusers.d/vmd.conf
	install -m 644 systemd/vmd.tmpfiles $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/vmd.conf
	[ -e $(DESTDIR)/etc/vmd/vmd.conf ] || install -m 644 systemd/vmd.conf $(DESTDIR)/etc/vmd/vmd.conf
	install -m 644 vmctl/man/*.1 $(DESTDIR)$(PREFIX)/share/man/man1/
	install -m 644 vmctl/man/*.5 $(DESTDIR)$(PREFIX)/share/man/man5/
	install -m 644 vmctl/man/*.8 $(DESTDIR)$(PREFIX)/share/man/man8/
	$(BUILD)/vmctl completion bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/vmctl

help:
	@echo 'make            build build/vmd, build/vmd-guest, build/vmd-image, build/vmctl'
	@echo 'make demo       set up, build, start a private daemon and run the main job (N=3 guests)'
	@echo 'make demo-stop  end the demo; make demo-daemon starts only its daemon again'
	@echo 'make check      set up, build and run every test this machine can run (ONLY=name, KIND="unit e2e")'
	@echo 'make lab        boot the lab (true KVM semantics under emulation) and run the KVM suite in it; make lab-shell'
	@echo 'make bench-crash  a million states that a crash can leave a disk in, each checked (minutes)'
	@echo 'make bench      one JSON line a figure, ours and the peer (ONLY=prefix); make bench-table for people'
	@echo 'make fuzz       replay the corpora under sanitizers; T=60 explores each target 60 s'
	@echo 'make lint       compilers, clang-tidy, cppcheck, shellcheck, format'
	@echo 'make asan tsan  the tests under sanitizers; make cover: line coverage'
	@echo 'make deps       install by apt what building and testing need'
	@echo 'make install    DESTDIR= PREFIX=/usr'
	@echo 'make clean      remove build directories'

clean:
	rm -rf build build-asan build-tsan build-fuzz build-cover

.PHONY: all bins tests deps kernels ready ready-bins check asan tsan fuzz fuzz-explorers lint lab lab-shell bench bench-crash bench-table demo \
	demo-daemon demo-stop cover install help clean
.SECONDARY:
-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)
