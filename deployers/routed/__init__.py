"""What targets of one machine share: replicas on hosts behind one router, all of which outlive the daemon.

`RoutedTarget` is level-based: every `apply` reads what is on disk and what runs, and takes one short stride towards the plan. Nothing of
importance is in its memory, so that a daemon killed at any instruction is replaced by one that goes on, and two daemons at once start
nothing twice. What a replica is, a process or a container, is a host's business.
"""
