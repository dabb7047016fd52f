//! Transactions: which branch each takes, whether it may run, and its run.
//!
//! As in etcd all compares, also those of nested transactions, look at the state before the
//! transaction, and everything that could fail is checked before the first write.

use proto::{
    etcdserverpb::{
        Compare, RequestOp, ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
        compare::{CompareResult, CompareTarget, TargetUnion},
        request_op::Request,
        response_op::Response,
    },
    mvccpb::KeyValue,
};

use crate::{
    engine::{Engine, Family, Read},
    error::Error,
    reader::{Keys, Reader, Want},
    rows,
    write::Writer,
};

/// The branch that a transaction takes, with those of the transactions nested in it, in order.
pub(crate) struct Path {
    succeeded: bool,
    nested: Vec<Path>,
}

/// Whether it changes nothing and so needs no place in the log. A nested transaction counts as a
/// change, as in etcd.
pub fn is_read_only(r: &TxnRequest) -> bool {
    let reads = |op: &RequestOp| matches!(op.request, Some(Request::RequestRange(_)));
    r.success.iter().chain(&r.failure).all(reads)
}

/// Whether all that it does is serializable reads, as etcd decides it: without operations it is,
/// whatever it compares.
pub fn is_serializable(r: &TxnRequest) -> bool {
    let serializable = |op: &RequestOp| match &op.request {
        Some(Request::RequestRange(range)) => range.serializable,
        _ => false,
    };
    r.success.iter().chain(&r.failure).all(serializable)
}

impl Path {
    /// Evaluates all compares.
    pub fn choose<R: Read>(reader: &Reader<'_, R>, r: &TxnRequest) -> Result<Self, Error> {
        let mut succeeded = true;
        for compare in &r.compare {
            if !holds(reader, compare)? {
                succeeded = false;
                break;
            }
        }
        let mut nested = Vec::new();
        for op in branch(r, succeeded) {
            if let Some(Request::RequestTxn(txn)) = &op.request {
                nested.push(Self::choose(reader, txn)?);
            }
        }
        Ok(Self { succeeded, nested })
    }

    /// Checks everything on the path that could fail.
    pub fn check<R: Read>(&self, reader: &Reader<'_, R>, r: &TxnRequest) -> Result<(), Error> {
        self.check_ops(reader, r, &mut Vec::new())
    }

    fn check_ops<'r, R: Read>(
        &self,
        reader: &Reader<'_, R>,
        r: &'r TxnRequest,
        deleted: &mut Vec<Keys<'r>>,
    ) -> Result<(), Error> {
        let mut nested = self.nested.iter();
        for op in branch(r, self.succeeded) {
            match &op.request {
                Some(Request::RequestRange(range)) => match range.revision {
                    0 => {}
                    at if at > reader.revision => return Err(Error::FutureRevision),
                    at if at < reader.compacted => return Err(Error::Compacted),
                    _ => {}
                },
                Some(Request::RequestPut(put)) => {
                    if put.lease != 0 && !lease_exists(reader.rows, put.lease)? {
                        return Err(Error::LeaseNotFound);
                    }
                    // A delete before it, whose range etcd's static check does not see, can take
                    // the key away that it builds on.
                    let gone = || deleted.iter().any(|keys| keys.contain(&put.key));
                    if (put.ignore_value || put.ignore_lease)
                        && (reader.current(&put.key)?.is_none() || gone())
                    {
                        return Err(Error::KeyNotFound);
                    }
                }
                Some(Request::RequestDeleteRange(delete)) => {
                    deleted.push(Keys::new(&delete.key, &delete.range_end));
                }
                Some(Request::RequestTxn(txn)) => {
                    if let Some(path) = nested.next() {
                        path.check_ops(reader, txn, deleted)?;
                    }
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Answers a transaction that only reads.
    pub fn read<R: Read>(
        &self,
        reader: &Reader<'_, R>,
        r: &TxnRequest,
    ) -> Result<TxnResponse, Error> {
        let mut response = self.response();
        for op in branch(r, self.succeeded) {
            if let Some(Request::RequestRange(range)) = &op.request {
                let range = reader.range(range)?;
                response.responses.push(ResponseOp {
                    response: Some(Response::ResponseRange(range)),
                });
            }
        }
        set_revision(&mut response, reader.revision);
        Ok(response)
    }

    /// Runs a transaction that has been checked.
    pub fn run<E: Engine>(
        &self,
        writer: &mut Writer<'_, E>,
        r: &TxnRequest,
    ) -> Result<TxnResponse, Error> {
        let mut response = self.response();
        let mut nested = self.nested.iter();
        for op in branch(r, self.succeeded) {
            let answer = match &op.request {
                Some(Request::RequestRange(range)) => {
                    Some(Response::ResponseRange(writer.range(range)?))
                }
                Some(Request::RequestPut(put)) => Some(Response::ResponsePut(writer.put_one(put)?)),
                Some(Request::RequestDeleteRange(delete)) => {
                    Some(Response::ResponseDeleteRange(writer.delete_keys(delete)?))
                }
                Some(Request::RequestTxn(txn)) => match nested.next() {
                    Some(path) => Some(Response::ResponseTxn(path.run(writer, txn)?)),
                    None => None,
                },
                None => None,
            };
            response.responses.push(ResponseOp { response: answer });
        }
        Ok(response)
    }

    fn response(&self) -> TxnResponse {
        TxnResponse {
            header: Some(ResponseHeader::default()),
            succeeded: self.succeeded,
            responses: Vec::new(),
        }
    }
}

/// Writes the revision of the outermost response.
pub(crate) fn set_revision(response: &mut TxnResponse, revision: i64) {
    response.header.get_or_insert_default().revision = revision;
}

/// Whether family `lease` has the lease.
pub(crate) fn lease_exists<R: Read>(rows: &R, lease: i64) -> Result<bool, Error> {
    Ok(rows.get(Family::Lease, &rows::lease_key(lease))?.is_some())
}

fn branch(r: &TxnRequest, succeeded: bool) -> &[RequestOp] {
    if succeeded { &r.success } else { &r.failure }
}

fn holds<R: Read>(reader: &Reader<'_, R>, compare: &Compare) -> Result<bool, Error> {
    let keys = Keys::new(&compare.key, &compare.range_end);
    let want = match compare.target() {
        CompareTarget::Value => Want::Values,
        _ => Want::Index,
    };
    let kvs = reader.collect(keys, reader.revision, None, want)?;
    if kvs.is_empty() {
        // There is no way to say "no value", so no comparison with one holds.
        return Ok(
            compare.target() != CompareTarget::Value && compares(compare, &KeyValue::default())
        );
    }
    Ok(kvs.iter().all(|kv| compares(compare, kv)))
}

/// Compares as asked; a value of another kind than the target counts as zero or empty.
fn compares(compare: &Compare, kv: &KeyValue) -> bool {
    let with = compare.target_union.as_ref();
    let order = match compare.target() {
        CompareTarget::Value => {
            let value = match with {
                Some(TargetUnion::Value(value)) => &value[..],
                _ => &[],
            };
            kv.value[..].cmp(value)
        }
        CompareTarget::Create => kv.create_revision.cmp(&match with {
            Some(TargetUnion::CreateRevision(n)) => *n,
            _ => 0,
        }),
        CompareTarget::Mod => kv.mod_revision.cmp(&match with {
            Some(TargetUnion::ModRevision(n)) => *n,
            _ => 0,
        }),
        CompareTarget::Version => kv.version.cmp(&match with {
            Some(TargetUnion::Version(n)) => *n,
            _ => 0,
        }),
        CompareTarget::Lease => kv.lease.cmp(&match with {
            Some(TargetUnion::Lease(n)) => *n,
            _ => 0,
        }),
    };
    match compare.result() {
        CompareResult::Equal => order.is_eq(),
        CompareResult::NotEqual => order.is_ne(),
        CompareResult::Greater => order.is_gt(),
        CompareResult::Less => order.is_lt(),
    }
}
