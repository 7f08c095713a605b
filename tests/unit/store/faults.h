/* Makes the n-th call that changes the disk fail, or kills the process there. Linked with
 * -Wl,--wrap for each of FAULT_CALLS; the calls of the test itself count too, so arm late and disarm early.
 */
#pragma once

enum fault_kind {
    FAULT_NONE,
    FAULT_ERROR, /* the call fails: no space, or for fsync an input/output error */
    FAULT_SHORT, /* a write writes half, then no space; other calls fail */
    FAULT_KILL   /* the process ends before the call, as by SIGKILL */
};

void faults_arm(enum fault_kind kind, int nth); /* nth counts from 1 */
/* Disarms; true when the fault was met. */
bool faults_met(void);
