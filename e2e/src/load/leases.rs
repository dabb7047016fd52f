//! Holders of leases: as long as renewals are answered, the lease is there.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use history::{Outcome, Request};
use proto::etcdserverpb::{LeaseKeepAliveRequest, lease_client::LeaseClient};
use rand::{Rng, rngs::StdRng};
use tonic::Status;

use super::{CALL, Shared, Target, rest};

/// The time to live of leases that are held, in seconds.
pub(super) const HELD_TTL: i64 = 30;
/// How long a holder waits between two renewals at most.
const RENEWAL: Duration = Duration::from_millis(800);

/// Makes a lease, holds it for a while, gives it back, and again.
pub(super) async fn holder(shared: Arc<Shared>, client: u64) {
    let mut rng = shared.rng(client);
    while !shared.is_over() {
        let id = shared.next_lease.fetch_add(1, Ordering::Relaxed);
        let target = shared.targets.pick(&mut rng);
        // How long it lives depends on renewals, so the history cannot tell.
        let grant = Request::LeaseGrant { id, ttl: 0 };
        if !matches!(shared.ask(client, &target, grant).await, Outcome::Done(_)) {
            continue;
        }
        let put = Request::Put {
            key: format!("c-held-{client}").into(),
            value: format!("{id}").into(),
            lease: id,
            prev_kv: false,
        };
        shared.ask(client, &target, put).await;
        hold(&shared, &mut rng, id).await;
        for _ in 0..20 {
            let target = shared.targets.pick(&mut rng);
            let revoke = Request::LeaseRevoke { id };
            if shared.ask(client, &target, revoke).await != Outcome::Unknown {
                break;
            }
        }
    }
}

async fn hold(shared: &Shared, rng: &mut StdRng, id: i64) {
    let mut renewed = Instant::now();
    let renewals = rng.random_range(3..15);
    for _ in 0..renewals {
        if shared.is_over() {
            return;
        }
        rest(rng, RENEWAL).await;
        let target = shared.targets.pick(rng);
        let asked = Instant::now();
        let answer = tokio::time::timeout(CALL, renew(&target, id)).await;
        let overdue = renewed.elapsed() >= Duration::from_secs(HELD_TTL.unsigned_abs());
        match answer {
            Ok(Ok(ttl)) if ttl > 0 => renewed = asked,
            Ok(Ok(_)) if !overdue => {
                shared.complaints.lock().push(format!(
                    "{} says that lease {id} is gone, {:?} after its last renewal",
                    target.name,
                    renewed.elapsed()
                ));
                return;
            }
            _ if overdue => return,
            _ => {}
        }
    }
}

/// Renews it once: the seconds that it has from now on, 0 when it is gone.
async fn renew(target: &Target, id: i64) -> Result<i64, Status> {
    let mut client = LeaseClient::new(target.channel.clone());
    let once = tokio_stream::once(LeaseKeepAliveRequest { id });
    let mut answers = client.lease_keep_alive(once).await?.into_inner();
    let answer = answers.message().await?;
    Ok(answer.ok_or_else(|| Status::unavailable("no answer"))?.ttl)
}
