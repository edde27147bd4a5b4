"""Whether every rank is alive, and a clean end when one is not.

One mechanism serves training and evaluation: a `Monitor` thread in each rank polls its checks and ends the
process as soon as one of them requests it, with one message per host and the same exit code on every rank.
The evidence differs, because the two jobs can rely on different things:

- `LauncherCheck` (both): a launcher above this process has died, or its output is no longer read.
- `HangCheck` (training): ranks write heartbeats into the run's folder, which all hosts share. A file
  outlives a broken connection, so each side of a cut link can still report where every rank is, and a link
  that returns within `train.hang_timeout` is forgiven: the next step needs all ranks anyway.
- `PeerCheck` (evaluation): a TCP connection from each rank to rank 0. Evaluation needs no
  folder that all hosts share, and its ranks seldom meet; the kernel reports a killed process at once.

Decisions from evidence (`verdict`) are pure; files, sockets, clocks and the thread are elsewhere.
`Preemption` turns a signal to one rank into a stop of all ranks after the same step.
"""
