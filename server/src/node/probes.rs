//! How far it is to other members, and whether their clocks agree: every few seconds, as etcd does.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use super::shared::Shared;

/// Time between two probes of a member. etcd closes connections that are idle for five seconds.
const INTERVAL: Duration = Duration::from_secs(4);
/// Clocks that are apart by more are told of.
const DRIFT: Duration = Duration::from_secs(1);
/// How often that is repeated, in probes.
const TELL_EVERY: u64 = 8;

/// Probes all other members again and again.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut count = 0;
    loop {
        ticks.tick().await;
        let others: Vec<(u64, Vec<String>)> = {
            let published = shared.published.load();
            let others = published.members.iter();
            let others = others.filter(|member| member.id != shared.settings.member_id);
            others
                .map(|member| (member.id, member.peer_urls.clone()))
                .collect()
        };
        for (id, urls) in others {
            tokio::spawn(probe(
                Arc::clone(&shared),
                id,
                urls,
                count % TELL_EVERY == 0,
            ));
        }
        count += 1;
    }
}

async fn probe(shared: Arc<Shared>, id: u64, urls: Vec<String>, tell: bool) {
    let Some(transport) = shared.transport() else {
        return;
    };
    // One that does not answer is told of by its streams.
    let Some(answer) = transport.client().probe(&urls).await else {
        return;
    };
    shared.counters.snapshots.round_trip(id, answer.took);
    let now = jiff::Timestamp::now();
    let Ok(theirs) = answer.now.parse::<jiff::Timestamp>() else {
        return;
    };
    let apart = now.duration_since(theirs).unsigned_abs();
    if tell && apart > DRIFT + answer.took {
        warn!("remote-peer-id" = %format_args!("{id:x}"), "clock-drift" = ?apart, rtt = ?answer.took,
            "prober found high clock drift");
    }
}
