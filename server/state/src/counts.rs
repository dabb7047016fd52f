//! What a batch did, in numbers, for metrics. They say nothing of the state and feed nothing back.

use proto::etcdserverpb::{
    PutRequest, RequestOp, ResponseOp, TxnRequest, TxnResponse, request_op::Request,
    response_op::Response,
};

/// How often each kind of request was carried out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Keys put.
    pub puts: u64,
    /// Ranges of keys deleted.
    pub deletes: u64,
    /// Ranges read, by what went through the log.
    pub ranges: u64,
    /// Transactions of more than one operation.
    pub txns: u64,
    /// Bytes of the keys and values that were put.
    pub put_bytes: u64,
    /// The time to live of each lease granted, in seconds.
    pub granted: Vec<i64>,
    /// Leases revoked.
    pub revoked: u64,
}

impl Counts {
    pub(crate) fn put(&mut self, r: &PutRequest) {
        self.puts += 1;
        self.put_bytes += (r.key.len() + r.value.len()) as u64;
    }

    /// The branch that was taken.
    pub(crate) fn txn(&mut self, r: &TxnRequest, response: &TxnResponse) {
        let before = self.operations();
        self.branch(r, response);
        if self.operations() - before > 1 {
            self.txns += 1;
        }
    }

    fn operations(&self) -> u64 {
        self.puts + self.deletes + self.ranges
    }

    fn branch(&mut self, r: &TxnRequest, response: &TxnResponse) {
        let branch: &[RequestOp] = match response.succeeded {
            true => &r.success,
            false => &r.failure,
        };
        for (asked, answered) in branch.iter().zip(&response.responses) {
            self.operation(asked, answered);
        }
    }

    fn operation(&mut self, asked: &RequestOp, answered: &ResponseOp) {
        match (&asked.request, &answered.response) {
            (Some(Request::RequestPut(r)), _) => self.put(r),
            (Some(Request::RequestDeleteRange(_)), _) => self.deletes += 1,
            (Some(Request::RequestRange(_)), _) => self.ranges += 1,
            (Some(Request::RequestTxn(r)), Some(Response::ResponseTxn(response))) => {
                self.branch(r, response);
            }
            _ => {}
        }
    }
}

/// How many ranges a transaction that only reads has read.
pub fn ranges_of(r: &TxnRequest, response: &TxnResponse) -> u64 {
    let mut counts = Counts::default();
    counts.branch(r, response);
    counts.ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_branch_that_was_taken_counts() {
        let put = |key: &'static str| RequestOp {
            request: Some(Request::RequestPut(PutRequest {
                key: key.into(),
                value: "value".into(),
                ..PutRequest::default()
            })),
        };
        let inner = TxnRequest {
            failure: vec![put("b"), put("c")],
            ..TxnRequest::default()
        };
        let r = TxnRequest {
            success: vec![
                put("a"),
                RequestOp {
                    request: Some(Request::RequestTxn(inner)),
                },
            ],
            failure: vec![put("never")],
            ..TxnRequest::default()
        };
        let nothing = ResponseOp::default();
        let nested = ResponseOp {
            response: Some(Response::ResponseTxn(TxnResponse {
                responses: vec![nothing.clone(), nothing.clone()],
                ..TxnResponse::default()
            })),
        };
        let response = TxnResponse {
            succeeded: true,
            responses: vec![nothing, nested],
            ..TxnResponse::default()
        };
        let mut counts = Counts::default();
        counts.txn(&r, &response);
        assert_eq!((counts.puts, counts.txns, counts.put_bytes), (3, 1, 18));
    }
}
