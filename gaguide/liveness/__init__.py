"""Whether every rank is alive, and a clean end when one is not.

One mechanism serves training and evaluation: a `Monitor` thread in each rank polls its checks and ends the
process as soon as one of them says so, with one message per host and the same exit code on every rank. What
differs is the evidence, because the two jobs differ in what they can rely on:

- `LauncherCheck` (both): a launcher above this process has died, or nobody reads its output any more.
- `HangCheck` (training): ranks write heartbeats into the run's folder, which all hosts share. A file
  outlives a broken connection, so each side of a cut link can still say where every rank is, and a link that
  returns within `train.hang_timeout` is forgiven: the next step needs all ranks anyway.
- `PeerCheck` (evaluation): a TCP connection from each rank to rank 0. Evaluation needs no
  folder that all hosts share, and its ranks seldom meet; the kernel reports a killed process at once.

What must be decided from evidence (`verdict`) is pure; files, sockets, clocks and the thread are elsewhere.
`Preemption` turns a signal to one rank into a stop of all ranks after the same step.
"""
