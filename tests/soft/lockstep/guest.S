/* guest.S - a small machine's firmware that goes through the modes: real, protected, paging, long, ring 3 in 64 and 32 bits; descriptor
 * and privilege checks, faults of every kind, system calls, string and arithmetic instructions. Linked at 0xf0000, 64 KiB, reset vector at
 * its end. No I/O, no time, no CPUID, no flag that the manuals leave undefined is kept: each step is the same on every x86-64.
 * Handlers return to where %rbx (a fault) points; %r15 counts what was seen.
 */
	.text
#define K	(0xf0000)
#define PT	0x10000
#define STK0	0x9000
#define STKIST	0xa000
#define STK3	0x308000
#define DATA	0x200000
#define UDATA	0x300000
#define MARK	0x5000

	.code16
	.globl _start
_start:
start16:
	cli
	xorl %edx, %edx		/* the processor's signature: each has its own */
	xor %ax, %ax
	mov %ax, %ds
	mov %ax, %es
	mov %ax, %ss
	mov $0x7000, %sp
	/* real mode: stack, string, segment arithmetic, interrupts through the table at 0 */
	movw $int16 - K, 0x21 * 4
	movw $0xf000, 0x21 * 4 + 2
	int $0x21
	mov $0x1234, %ax
	mov %ax, %fs
	movl $0xdeadbeef, %fs:0x10
	mov $0x1235, %dx
	mov %dx, %gs
	mov %gs:0, %eax
	pushl %eax
	popw %cx
	popw %dx
	push %cs
	pop %ds
	mov $text - K, %si
	mov $0x600, %di
	mov $16, %cx
	rep movsb
	xor %ax, %ax
	mov %ax, %ds
	mov $0x600, %di
	mov $16, %cx
	mov $'m', %al
	repne scasb
	mov $0x600, %si
	lodsw
	call near16
	lcall $0xf000, $far16 - K
	mov $0xffff, %bx
	add %bx, %bx
	adc $0, %ax
	daa
	aas
	mov $0x37, %al
	aam $10
	aad $10
	pusha
	popa
	enter $8, $1
	leave
	mov $3, %cx
1:	inc %dx
	loop 1b
	pushfl
	popfl
	lgdtl %cs:gdtr - K
	lidtl %cs:idtr0 - K
	mov %cr0, %eax
	or $1, %al
	mov %eax, %cr0
	ljmpl $0x08, $start32
int16:
	inc %bp
	iret
near16:	ret
far16:	lret

	.code32
start32:
	mov $0x10, %ax
	mov %ax, %ds
	mov %ax, %es
	mov %ax, %ss
	mov $STK0, %esp
	xor %eax, %eax
	mov %ax, %fs
	mov %ax, %gs
	smsw %ax
	sldt %cx
	str %dx
	mov $0x10, %ecx
	lar %ecx, %eax
	xor %eax, %eax
	lsl %ecx, %edx
	verr %cx
	verw %cx
	mov $0x08, %ecx
	verw %cx
	mov $0x100, %ecx
	lar %ecx, %eax
	mov %ecx, %eax
	arpl %cx, %dx
	bound %ecx, bounds
	call *fn32
	push $0x08
	push $2f
	lret
2:	mov $0x12345678, %eax
	bswap %eax
	daa
	das
	xchg %al, %ah
	/* tables: 4 MiB in 4 KiB pages by one page table a 2 MiB, a 2 MiB page beyond; low 1 MiB supervisor, from 3 MiB user */
	mov $PT, %edi
	xor %eax, %eax
	mov $0x1800, %ecx
	rep stosl
	movl $PT + 0x1000 + 7, PT
	movl $PT + 0x2000 + 7, PT + 0x1000
	movl $PT + 0x3000 + 7, PT + 0x2000
	movl $PT + 0x4000 + 7, PT + 0x2008
	movl $0x400000 + 0x83, PT + 0x2010
	mov $PT + 0x3000, %edi
	mov $3, %eax
	mov $64, %ecx
3:	mov %eax, (%edi)
	add $0x1000, %eax
	add $8, %edi
	loop 3b
	mov $0xf0003, %eax
	mov $PT + 0x3000 + 0xf0 * 8, %edi
	mov $16, %ecx
3:	mov %eax, (%edi)
	orl $4, (%edi)		/* the image is readable and runs in ring 3 too */
	add $0x1000, %eax
	add $8, %edi
	loop 3b
	movl $0x200003, PT + 0x4000
	movl $0x201001, PT + 0x4008		/* read-only */
	movl $0x202003, PT + 0x4010
	movl $0x80000000, PT + 0x4014		/* no execution */
	movl $0x204003, PT + 0x4020
	movl $0x40000000, PT + 0x4024		/* a reserved bit is set below, in long mode */
	mov $0x300007, %eax
	mov $PT + 0x4000 + 256 * 8, %edi
	mov $16, %ecx
3:	mov %eax, (%edi)
	add $0x1000, %eax
	add $8, %edi
	loop 3b
	/* a task segment: rsp0 and ist1 */
	movl $STK0, 0x4000 + 4
	movl $STKIST, 0x4000 + 36
	movl $0x680000, 0x4000 + 100
	/* gates */
	mov $0x3000, %edi
	mov $stubs, %esi
	xor %ecx, %ecx
4:	mov %esi, %eax
	and $0xffff, %eax
	or $0x180000, %eax
	mov %eax, (%edi)
	mov %esi, %eax
	and $0xffff0000, %eax
	or $0x8e00, %eax
	cmp $3, %ecx
	je 5f
	cmp $0x80, %ecx
	jne 6f
5:	or $0x6000, %eax
6:	cmp $8, %ecx
	je 7f
	cmp $2, %ecx
	jne 8f
7:	or $1, %eax
8:	mov %eax, 4(%edi)
	add $16, %edi
	add $16, %esi
	inc %ecx
	cmp $0x82, %ecx
	jb 4b
	mov $0x6b0, %eax
	mov %eax, %cr4
	mov $PT, %eax
	mov %eax, %cr3
	mov $0xc0000080, %ecx
	mov $0x901, %eax
	xor %edx, %edx
	wrmsr
	mov %cr0, %eax
	or $0x80010022, %eax
	and $~0xc, %eax
	mov %eax, %cr0
	ljmp $0x18, $start64
	.globl f32
f32:	ret

	.code64
start64:
	lidt idtr
	mov $0x48, %eax
	ltr %ax
	mov $STK0, %esp
	xor %eax, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov $0xc0000081, %ecx		/* STAR, LSTAR, CSTAR, FMASK */
	xor %eax, %eax
	mov $0x00230018, %edx
	wrmsr
	inc %ecx
	mov $sysentry, %eax
	xor %edx, %edx
	wrmsr
	mov $0xc0000084, %ecx
	mov $0x4fd5, %eax	/* arithmetic flags too: QEMU loses them anyway */
	wrmsr
	mov $0xc0000102, %ecx
	mov $0x202000, %eax
	wrmsr
	mov $0xc0000101, %ecx
	mov $0x200000, %eax
	wrmsr
	rdmsr
	swapgs
	swapgs
	mov %cr4, %rax
	mov %cr8, %rax
	mov $5, %eax
	mov %rax, %cr8
	mov %cr8, %rdx
	xor %eax, %eax
	mov %rax, %cr8
	sgdt MARK
	sidt MARK + 16
	str %eax
	smsw %eax
	invlpg DATA
	clts
	fninit			/* after a reset no x87 register is empty */

#define FAULT(...)	lea 9f(%rip), %rbx; __VA_ARGS__; 9:
	FAULT(ud2)
	FAULT(xor %ecx, %ecx; xor %edx, %edx; mov $7, %eax; div %ecx)
	FAULT(mov $0x7fffffffffffffff, %rdx; mov $2, %ecx; div %rcx)
	FAULT(mov $-1, %ecx; mov $0x80000000, %eax; cltd; idiv %ecx)
	FAULT(int3)
	FAULT(int $0x80)
	FAULT(mov 0x800000, %eax)
	FAULT(movl $1, 0x800004)
	FAULT(movl $1, DATA + 0x1000)
	FAULT(mov $DATA + 0x2000, %eax; jmp *%rax)
	FAULT(mov 0x204000, %eax)
	FAULT(mov $0x8000000000000000, %rax; mov (%rax), %ecx)
	FAULT(mov $0x50, %eax; mov %eax, %ds)
	FAULT(mov $0xfff8, %eax; mov %eax, %es)
	FAULT(mov $0x18, %eax; mov %eax, %ss)
	FAULT(mov $0x33, %eax; mov %eax, %ss)
	FAULT(mov $0x08, %eax; ltr %ax)
	FAULT(mov $0x10, %eax; lldt %ax)
	FAULT(push $0x28; push $9f; lretq)
	FAULT(push $0x1000; push $9f; lretq)
	FAULT(movaps DATA + 4, %xmm0)
	FAULT(lock; .byte 0x01, 0xc0)
	FAULT(mov %cr0, %rdx; mov %rdx, %rax; or $8, %rax; mov %rax, %cr0; movaps %xmm0, %xmm1)
	mov %rdx, %cr0
	FAULT(mov %cr0, %rdx; mov %rdx, %rax; or $4, %rax; mov %rax, %cr0; movaps %xmm0, %xmm1)
	mov %rdx, %cr0
	FAULT(mov $0x3b, %eax; verr %ax; lar %eax, %ecx; mov %eax, %ecx; lsl %eax, %edx)
	/* write protection off: a supervisor may write then */
	mov %cr0, %rax
	btr $16, %rax
	mov %rax, %cr0
	movl $0x55, DATA + 0x1000
	bts $16, %rax
	mov %rax, %cr0
	/* the large page; a fault across pages; the dirty bits show in the tables */
	movq $-2, 0x400ff8
	mov 0x400ff9, %rax
	FAULT(movq $1, 0x5ffffc)
	mov PT + 0x2010, %rax
	mov PT + 0x4000, %rcx
	mov PT + 0x4008, %rdx
	call work
	/* compatibility mode and back */
	pushq $0x08
	pushq $compat
	lretq
	.code32
compat:	mov $0x10, %eax
	mov %ax, %ds
	mov %ax, %es
	mov %ax, %ss
	mov $0xffffffff, %eax
	inc %eax
	push %eax
	pop %ecx
	daa
	ljmp $0x18, $back64
	.code64
back64:	xor %eax, %eax
	mov %eax, %ds
	mov %eax, %es
	/* ring 3 by iretq */
	pushq $0x2b
	pushq $STK3
	pushq $0x0202 - 0x200
	pushq $0x33
	pushq $user
	iretq
user:
	FAULT(mov $1, %esi; cli)
	FAULT(hlt)
	FAULT(mov %cr0, %rax)
	FAULT(mov 0x200000, %eax)
	FAULT(movl $1, 0x9000)
	FAULT(mov $0xe0000, %eax; call *%rax)
	FAULT(mov 0x400000, %eax)
	FAULT(int $0x20)
	FAULT(int3)
	FAULT(int $0x80)
	FAULT(wrmsr)
	FAULT(invlpg UDATA)
	FAULT(lgdt UDATA)
	FAULT(mov $0x10, %eax; mov %eax, %ds)
	FAULT(mov $0x2b, %eax; mov %eax, %ds; mov %eax, %es)
	FAULT(swapgs)
	FAULT(in $0x80, %al)
	pushfq
	popq %rax
	or $0x3000, %rax
	pushq %rax
	popfq
	pushfq
	popq %rax
	mov $UDATA, %edi
	call uwork
	syscall
	mov $1, %eax
	syscall
	/* 32-bit code in ring 3 */
	pushq $0x3b
	pushq $user32
	lretq
	.code32
user32:	mov $0x2b, %eax
	mov %ax, %ds
	mov $UDATA, %edi
	mov $5, %ecx
1:	mov %ecx, (%edi)
	add $4, %edi
	dec %ecx
	jnz 1b
	lea 9f, %ebx
	int $0x80
9:	lea 9f, %ebx
	.byte 0xea
	.long 9f
	.word 0x18
9:	pushf
	pop %edx
	ljmp $0x33, $user64
	.code64
user64:	int $0x81

	/* arithmetic, shifts, bits, strings, atomics, x87 and SSE over a pseudo-random state; %rdi: a page of data */
work:	mov $DATA, %edi
uwork:	mov $0x9e3779b97f4a7c15, %rax
	mov $12, %ecx
1:	push %rcx
	mov %rax, %rdx
	shl $13, %rdx
	xor %rdx, %rax
	mov %rax, %rdx
	shr $7, %rdx
	xor %rdx, %rax
	mov %rax, %rdx
	shl $17, %rdx
	xor %rdx, %rax
	mov %rax, %r8
	mov %rax, (%rdi)
	add %eax, 4(%rdi)
	adc %ax, 6(%rdi)
	sbb %al, 9(%rdi)
	sub %rax, 16(%rdi)
	cmp %rax, 8(%rdi)
	setg %r9b
	cmovle %rax, %r10
	lea 3(%rax, %r8, 4), %r11
	movsbl %al, %r9d
	movzwl %ax, %edx
	movslq %eax, %r12
	imul $77, %r8, %r13
	mul %r8
	neg %r13
	not %r12
	inc %r13b
	dec %r12w
	rol $5, %r12
	ror $9, %r13d
	bswap %r12
	xchg %r12, %r13
	bt $17, %r8
	setc %r9b
	btsl $3, 20(%rdi)
	btrq $40, 24(%rdi)
	bsf %r8, %r14
	bsr %r8, %r14
	lock xadd %r8, 32(%rdi)
	mov (%rdi), %rax
	lock cmpxchg %r13, (%rdi)
	cmpxchg %r12, 8(%rdi)
	mov %r8, %rax
	xor %edx, %edx
	push %rbx
	mov $1, %ebx
	mov $2, %ecx
	lock cmpxchg16b 64(%rdi)
	lock cmpxchg16b 64(%rdi)
	cmpxchg8b 40(%rdi)
	pop %rbx
	mov %rdi, %rsi
	push %rdi
	lea 128(%rdi), %rdi
	mov $7, %ecx
	rep movsq
	std
	mov $3, %ecx
	rep movsb
	cld
	mov $20, %ecx
	mov $0x41, %al
	rep stosb
	pop %rdi
	push %rdi
	lea 128(%rdi), %rsi
	mov $64, %ecx
	repe cmpsb
	pop %rdi
	movq %r8, %xmm0
	movq %r13, %xmm1
	punpcklbw %xmm1, %xmm0
	paddd %xmm0, %xmm1
	pshufd $0x1b, %xmm1, %xmm2
	movdqu %xmm2, 96(%rdi)
	cvtsi2sd %r13, %xmm3
	cvtsi2sd %r12d, %xmm4
	mulsd %xmm4, %xmm3
	divsd %xmm4, %xmm3
	cvttsd2si %xmm3, %rdx
	ucomisd %xmm3, %xmm4
	movq %xmm3, %rdx
	fildl 4(%rdi)
	fildl (%rdi)
	faddp
	fstpt 112(%rdi)
	mov 112(%rdi), %rdx
	mov %r13, %rax
	pop %rcx
	dec %ecx
	jnz 1b
	ret

sysentry:
	swapgs
	mov %rsp, %r14
	mov $STK0 - 256, %esp
	push %rcx
	push %r11
	movl $0x1234, %gs:8
	inc %r15
	pop %r11
	pop %rcx
	mov %r14, %rsp
	swapgs
	sysretq

	/* 16 bytes a vector: error code (or 0), then the number */
	.balign 16
stubs:
	.set v, 0
	.rept 0x82
	.balign 16
	.if (v != 8) && (v != 10) && (v != 11) && (v != 12) && (v != 13) && (v != 14) && (v != 17)
	pushq $0
	.endif
	pushq $v
	jmp common
	.set v, v + 1
	.endr
	.balign 16
common:
	pop %r8
	pop %r9			/* the error code */
	mov %cr2, %r10
	mov (%rsp), %r11
	mov 8(%rsp), %r12
	movzwl 16(%rsp), %r13d	/* without RF, which QEMU does not push */
	mov 24(%rsp), %r14
	inc %r15
	cmp $13, %r8d
	jne 1f
	cmp $user64, %r11	/* int $0x81 from ring 3: its gate is not for it; the end */
	je end
1:	mov %rbx, (%rsp)
	iretq
end:	/* a fault in delivering a fault: the stack is gone; #DF comes on a stack of its own */
	lea over(%rip), %rbx
	mov $0x800000, %esp
	mov 0x800000, %eax
over:	mov $0x600d, %eax
	mov $0x600d, %edx
1:	jmp 1b

text:	.ascii "system-mode step"
	.balign 8
bounds:	.long 0, 0x1000
fn32:	.long f32
	.balign 16
gdt:	.quad 0
	.quad 0x00cf9b000000ffff	/* 08 code 32 */
	.quad 0x00cf93000000ffff	/* 10 data */
	.quad 0x00af9b000000ffff	/* 18 code 64 */
	.quad 0x00cf93000000ffff	/* 20 data, for SYSCALL's SS */
	.quad 0x00cff3000000ffff	/* 28 user data */
	.quad 0x00affb000000ffff	/* 30 user code 64 */
	.quad 0x00cffb000000ffff	/* 38 user code 32 */
	.quad 0
	.quad 0x0000890040000067	/* 48 task, 64-bit: base 0x4000 */
	.quad 0
	.quad 0x00cf13000000ffff	/* 58 not present */
gdtr:	.word gdtend - gdt - 1
	.quad gdt
	.set gdtend, gdtr
idtr0:	.word 0
	.quad 0
idtr:	.word 0x82 * 16 - 1
	.quad 0x3000

	.org 0xfff0
	.code16
	ljmp $0xf000, $start16 - K
	.org 0x10000
