//! Whole nodes, joined by a network and on disks that both live in memory.

mod boundary;
mod chaos;
mod cluster;
mod disk;
mod election;
mod membership;
mod reads;
mod replication;
