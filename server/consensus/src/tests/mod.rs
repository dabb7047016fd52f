//! Whole nodes, joined by a network and on disks that both live in memory.

mod boundary;
mod chaos;
mod cluster;
mod disk;
mod election;
mod membership;
mod reads;
mod replication;
mod snapshots;

/// The driver lives on a thread of its own, which is started with it.
#[test]
fn a_driver_can_be_moved_to_its_thread() {
    fn check<T: Send>() {}
    check::<crate::Driver>();
}
