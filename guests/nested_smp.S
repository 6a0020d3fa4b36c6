// For nested_smp.cc: the second processor.
#include "guests/support/selectors.h"
#include "guests/edge/smp.inc"
        .text
        .globl start_second
start_second:
        start_other
        ret
other:  call second_main
1:      cli
        hlt
        jmp 1b
        define_smp
