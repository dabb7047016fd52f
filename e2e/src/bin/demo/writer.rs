//! The pods that stand for users: one that waits for commands, and one that writes and says for
//! each write whether it was acknowledged.

use std::{collections::BTreeSet, fmt};

use anyhow::{Context, Result};

/// What the keys of the writer begin with.
pub const PREFIX: &str = "writes/";
/// How long the writer may run, in seconds: also when nobody stops it.
pub const LIMIT: u32 = 900;

/// Writes one key after the other, each by a program of its own, and prints for each what became
/// of it and when, in seconds of the machine's uptime.
pub const SCRIPT: &str = "number=0
while [ ! -e /tmp/stop ] && [ $number -lt 50000 ]; do
  number=$((number + 1))
  word=acknowledged
  etcdctl put writes/$number $number > /dev/null 2> /tmp/error || word=refused
  read now rest < /proc/uptime
  echo $word $number $now
done";

/// What became of the writes.
#[derive(Debug, Default)]
pub struct Writes {
    /// The numbers of those that the cluster acknowledged.
    pub acknowledged: BTreeSet<u64>,
    /// How many it did not.
    pub refused: usize,
    /// The longest time between two acknowledged ones, in seconds.
    pub pause: f64,
}

impl Writes {
    /// Reads what the writer printed. Its last line may be half.
    pub fn read(log: &str) -> Result<Self> {
        let mut writes = Self::default();
        let mut last: Option<f64> = None;
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        for line in whole.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [word, number, now] = words[..] else {
                anyhow::bail!("the writer said {line:?}");
            };
            if word != "acknowledged" {
                writes.refused += 1;
                continue;
            }
            writes
                .acknowledged
                .insert(number.parse().context("a write has no number")?);
            let now: f64 = now.parse().context("a write has no time")?;
            let pause = last.map_or(0.0, |last| now - last);
            writes.pause = writes.pause.max(pause);
            last = Some(now);
        }
        Ok(writes)
    }
}

impl fmt::Display for Writes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} writes acknowledged, {} refused, the longest pause between two {:.1} s",
            self.acknowledged.len(),
            self.refused,
            self.pause
        )
    }
}

/// A restricted pod with a shell and an etcdctl that knows where the cluster is. `limit` ends it
/// after so many seconds.
pub fn pod(name: &str, script: &str, limit: Option<u32>) -> String {
    let limit = match limit {
        Some(seconds) => format!("activeDeadlineSeconds: {seconds}"),
        None => "terminationGracePeriodSeconds: 1".to_owned(),
    };
    let script = script.replace('\n', "\n          ");
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: demo
spec:
  restartPolicy: Never
  {limit}
  automountServiceAccountToken: false
  enableServiceLinks: false
  securityContext:
    runAsNonRoot: true
    seccompProfile:
      type: RuntimeDefault
  containers:
    - name: etcdctl
      image: cairn.test/tools:1
      command:
        - sh
        - -c
        - |
          {script}
      env:
        - name: ETCDCTL_ENDPOINTS
          value: http://my-etcd-client.demo.svc:2379
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities:
          drop: [ALL]
      volumeMounts:
        - name: tmp
          mountPath: /tmp
  volumes:
    - name: tmp
      emptyDir: {{}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_counted_and_the_longest_pause_is_found() {
        let log = "acknowledged 1 10.00\nacknowledged 2 10.05\nrefused 3 12.00\n\
                   acknowledged 4 13.05\nacknowl";
        let writes = Writes::read(log).unwrap();
        assert_eq!(writes.acknowledged, BTreeSet::from([1, 2, 4]));
        assert_eq!(writes.refused, 1);
        assert!((writes.pause - 3.0).abs() < 1e-9, "{}", writes.pause);
        assert!(Writes::read("").unwrap().acknowledged.is_empty());
        assert!(Writes::read("what is this\nthing\n").is_err());
    }
}
