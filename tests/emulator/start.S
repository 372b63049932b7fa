/* start.S: from the Multiboot loader (32 bits, no paging) to kmain in 64-bit mode with SSE, AVX and AVX-512 switched on.
 * Memory below 4 GiB is mapped to itself in pages of 2 MiB. There are no interrupt handlers: any fault, such as touching
 * a page that host.c took away, stops the processor. */
.set FLAGS, 3 /* aligned modules, memory map */
.section .multiboot, "a"
.align 4
.long 0x1BADB002, FLAGS, -(0x1BADB002 + FLAGS)

.section .bss
.align 4096
level4: .skip 4096
level3: .skip 4096
.globl page_directory
page_directory: .skip 4 * 4096
.align 64
stack: .skip 1 << 20
stack_end:

.section .data
.align 8
descriptors: .quad 0, 0x00AF9A000000FFFF, 0x00CF92000000FFFF /* none, 64-bit code, data */
descriptors_end:
descriptor_table:
.word descriptors_end - descriptors - 1
.long descriptors

.section .text
.code32
.globl _start
_start:
    cli
    movl $stack_end, %esp
    movl $level3 + 3, level4 /* 3: present, writable */
    movl $page_directory + 3, %eax
    movl $level3, %edi
    movl $4, %ecx
1:  movl %eax, (%edi)
    addl $4096, %eax
    addl $8, %edi
    loop 1b
    movl $0x83, %eax /* and 2 MiB large */
    movl $page_directory, %edi
    movl $4 * 512, %ecx
2:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    loop 2b
    movl $level4, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x40620, %eax /* physical address extension, SSE, its exceptions, XSAVE */
    movl %eax, %cr4
    movl $0xC0000080, %ecx /* EFER: long mode */
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl %cr0, %eax
    andl $~0xC, %eax /* a floating-point unit is present */
    orl $0x80000002, %eax /* paging */
    movl %eax, %cr0
    lgdt descriptor_table
    ljmp $8, $long_mode
.code64
long_mode:
    movw $16, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movq $stack_end, %rsp
    xorl %ecx, %ecx
    movl $0xE7, %eax /* x87, SSE, AVX, and the three parts of AVX-512 */
    xorl %edx, %edx
    xsetbv
    call kmain
    movw $0x8900, %dx /* Bochs ends when it reads this word here */
    leaq shutdown(%rip), %rsi
3:  lodsb
    testb %al, %al
    jz 4f
    outb %al, %dx
    jmp 3b
4:  hlt
    jmp 4b
shutdown: .asciz "Shutdown"
