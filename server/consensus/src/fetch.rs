//! Entries that have left memory and are asked of the log.

use std::collections::VecDeque;

use raft::{GetEntriesContext, eraftpb::Entry};

use crate::FetchRequest;

/// Requests that are not answered at one time. Followers beyond are served when they speak next.
const MAX_REQUESTS: usize = 16;
/// raft's own calls that wait for one request.
const MAX_WAITING: usize = 8;

#[derive(Debug)]
pub(crate) enum Purpose {
    /// raft's calls for followers; each is repeated when the entries are there.
    Send(Vec<GetEntriesContext>),
    /// The next entries to be handed out.
    Apply,
}

#[derive(Debug)]
struct Pending {
    request: FetchRequest,
    purpose: Purpose,
}

#[derive(Debug, Default)]
pub(crate) struct Fetches {
    last_id: u64,
    pending: Vec<Pending>,
    unsent: VecDeque<FetchRequest>,
    /// Entries that have just arrived: they live as long as raft is called about them.
    pub(crate) arrived: Vec<Entry>,
    /// Entries that arrived for apply: they live until they are handed out.
    pub(crate) to_apply: Vec<Entry>,
}

impl Fetches {
    /// raft needs `lo..hi` for a follower.
    pub(crate) fn for_follower(&mut self, request: FetchRequest, context: GetEntriesContext) {
        for pending in &mut self.pending {
            if let Purpose::Send(waiting) = &mut pending.purpose
                && pending.request.lo == request.lo
            {
                if waiting.len() < MAX_WAITING {
                    waiting.push(context);
                }
                return;
            }
        }
        if self.pending.len() < MAX_REQUESTS {
            self.ask(request, Purpose::Send(vec![context]));
        }
    }

    pub(crate) fn for_apply(&mut self, request: FetchRequest) {
        if !self.awaits_apply() {
            self.ask(request, Purpose::Apply);
        }
    }

    pub(crate) fn awaits_apply(&self) -> bool {
        let mut all = self.pending.iter();
        all.any(|pending| matches!(pending.purpose, Purpose::Apply))
    }

    fn ask(&mut self, request: FetchRequest, purpose: Purpose) {
        self.last_id += 1;
        let request = FetchRequest {
            id: self.last_id,
            ..request
        };
        self.pending.push(Pending { request, purpose });
        self.unsent.push_back(request);
    }

    pub(crate) fn next_unsent(&mut self) -> Option<FetchRequest> {
        self.unsent.pop_front()
    }

    /// A snapshot took the place of the log: nothing of it is wanted any more.
    pub(crate) fn forget(&mut self) {
        *self = Self {
            last_id: self.last_id,
            ..Self::default()
        };
    }

    /// The request that `id` names, once.
    pub(crate) fn answered(&mut self, id: u64) -> Option<Purpose> {
        let found = self.pending.iter().position(|one| one.request.id == id)?;
        Some(self.pending.swap_remove(found).purpose)
    }
}
