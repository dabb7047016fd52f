//! What a request must be before the server looks at it: etcd's static checks, in its order.

use std::collections::HashSet;

use proto::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    range_request::{SortOrder, SortTarget},
    request_op::Request,
};
use state::Error;

pub(crate) fn range(r: &RangeRequest) -> Result<(), Error> {
    if r.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    let order = SortOrder::try_from(r.sort_order).is_ok();
    match order && SortTarget::try_from(r.sort_target).is_ok() {
        true => Ok(()),
        false => Err(Error::InvalidSortOption),
    }
}

pub(crate) fn put(r: &PutRequest) -> Result<(), Error> {
    if r.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    if r.ignore_value && !r.value.is_empty() {
        return Err(Error::ValueProvided);
    }
    if r.ignore_lease && r.lease != 0 {
        return Err(Error::LeaseProvided);
    }
    Ok(())
}

pub(crate) fn delete_range(r: &DeleteRangeRequest) -> Result<(), Error> {
    match r.key.is_empty() {
        true => Err(Error::EmptyKey),
        false => Ok(()),
    }
}

pub(crate) fn txn(r: &TxnRequest, max_ops: usize) -> Result<(), Error> {
    txn_shape(r, max_ops)?;
    Writes::of(&r.success)?;
    Writes::of(&r.failure)?;
    Ok(())
}

/// A nested transaction may have as many operations as its parent left over.
fn txn_shape(r: &TxnRequest, max_ops: usize) -> Result<(), Error> {
    let ops = r.compare.len().max(r.success.len()).max(r.failure.len());
    let left = max_ops.checked_sub(ops).ok_or(Error::TooManyOps)?;
    if r.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(Error::EmptyKey);
    }
    for op in r.success.iter().chain(&r.failure) {
        match &op.request {
            Some(Request::RequestRange(r)) => range(r)?,
            Some(Request::RequestPut(r)) => put(r)?,
            Some(Request::RequestDeleteRange(r)) => delete_range(r)?,
            Some(Request::RequestTxn(r)) => txn_shape(r, left)?,
            // An operation that is none, in etcd's odd words.
            None => return Err(Error::KeyNotFound),
        }
    }
    Ok(())
}

/// The keys that a branch writes: no key may be put twice, or put and deleted.
#[derive(Default)]
struct Writes<'a> {
    puts: HashSet<&'a [u8]>,
    /// Key and range end. An end of one zero byte is taken literally here, as in etcd: such a
    /// range is empty, so overlaps with it go unseen.
    deletes: Vec<(&'a [u8], &'a [u8])>,
}

impl<'a> Writes<'a> {
    fn of(branch: &'a [RequestOp]) -> Result<Self, Error> {
        let mut writes = Self::default();
        for op in branch {
            if let Some(Request::RequestDeleteRange(r)) = &op.request {
                writes.deletes.push((&r.key, &r.range_end));
            }
        }
        for op in branch {
            if let Some(Request::RequestTxn(r)) = &op.request {
                writes.add_nested(r)?;
            }
        }
        for op in branch {
            if let Some(Request::RequestPut(r)) = &op.request {
                writes.add_put(&r.key, false)?;
            }
        }
        Ok(writes)
    }

    /// Only one branch of a nested transaction runs, so the two may put the same keys.
    fn add_nested(&mut self, r: &'a TxnRequest) -> Result<(), Error> {
        let then = Self::of(&r.success)?;
        let otherwise = Self::of(&r.failure)?;
        for key in &then.puts {
            self.add_put(key, false)?;
        }
        for key in &otherwise.puts {
            self.add_put(key, then.puts.contains(key))?;
        }
        self.deletes.extend(then.deletes);
        self.deletes.extend(otherwise.deletes);
        Ok(())
    }

    fn add_put(&mut self, key: &'a [u8], may_repeat: bool) -> Result<(), Error> {
        let repeated = self.puts.contains(key) && !may_repeat;
        let deletes = |(from, end): &(&[u8], &[u8])| match end.is_empty() {
            true => *from == key,
            false => *from <= key && key < *end,
        };
        if repeated || self.deletes.iter().any(deletes) {
            return Err(Error::DuplicateKey);
        }
        self.puts.insert(key);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn put_op(key: &str) -> RequestOp {
        RequestOp {
            request: Some(Request::RequestPut(PutRequest {
                key: Bytes::copy_from_slice(key.as_bytes()),
                ..PutRequest::default()
            })),
        }
    }

    fn delete_op(key: &str, end: &str) -> RequestOp {
        RequestOp {
            request: Some(Request::RequestDeleteRange(DeleteRangeRequest {
                key: Bytes::copy_from_slice(key.as_bytes()),
                range_end: Bytes::copy_from_slice(end.as_bytes()),
                ..DeleteRangeRequest::default()
            })),
        }
    }

    fn nested(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
        RequestOp {
            request: Some(Request::RequestTxn(TxnRequest {
                success,
                failure,
                ..TxnRequest::default()
            })),
        }
    }

    #[test]
    fn single_requests_are_checked() {
        let key = Bytes::from_static(b"k");
        let checks = [
            (range(&RangeRequest::default()), Err(Error::EmptyKey)),
            (
                range(&RangeRequest {
                    key: key.clone(),
                    sort_order: 3,
                    ..RangeRequest::default()
                }),
                Err(Error::InvalidSortOption),
            ),
            (
                range(&RangeRequest {
                    key: key.clone(),
                    sort_target: 5,
                    ..RangeRequest::default()
                }),
                Err(Error::InvalidSortOption),
            ),
            (put(&PutRequest::default()), Err(Error::EmptyKey)),
            (
                put(&PutRequest {
                    key: key.clone(),
                    value: key.clone(),
                    ignore_value: true,
                    ..PutRequest::default()
                }),
                Err(Error::ValueProvided),
            ),
            (
                put(&PutRequest {
                    key: key.clone(),
                    lease: 1,
                    ignore_lease: true,
                    ..PutRequest::default()
                }),
                Err(Error::LeaseProvided),
            ),
            (
                put(&PutRequest {
                    key,
                    ignore_value: true,
                    ignore_lease: true,
                    ..PutRequest::default()
                }),
                Ok(()),
            ),
            (
                delete_range(&DeleteRangeRequest::default()),
                Err(Error::EmptyKey),
            ),
        ];
        for (found, expected) in checks {
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn transactions_are_checked() {
        let check = |success: Vec<RequestOp>, failure: Vec<RequestOp>, expected| {
            let r = TxnRequest {
                success,
                failure,
                ..TxnRequest::default()
            };
            assert_eq!(txn(&r, 3), expected, "{r:?}");
        };
        let four = |op: fn() -> RequestOp| vec![op(), op(), op(), op()];
        check(vec![], vec![], Ok(()));
        check(four(|| delete_op("a", "")), vec![], Err(Error::TooManyOps));
        check(vec![RequestOp::default()], vec![], Err(Error::KeyNotFound));
        check(vec![put_op("")], vec![], Err(Error::EmptyKey));
        check(vec![put_op("a")], vec![put_op("a")], Ok(()));
        let twice = vec![put_op("a"), put_op("a")];
        check(twice.clone(), vec![], Err(Error::DuplicateKey));
        check(vec![], twice, Err(Error::DuplicateKey));
        let deleted = |end| vec![put_op("b"), delete_op("a", end)];
        check(deleted("c"), vec![], Err(Error::DuplicateKey));
        check(deleted("b"), vec![], Ok(()));
        check(deleted("\0"), vec![], Ok(()));
        check(
            vec![delete_op("a", "c"), delete_op("b", "")],
            vec![],
            Ok(()),
        );
        // A nested transaction counts within the bound of its parent.
        let two = || nested(vec![put_op("x"), put_op("y")], vec![]);
        check(vec![two()], vec![], Ok(()));
        check(
            vec![two(), delete_op("a", "")],
            vec![],
            Err(Error::TooManyOps),
        );
        let branches = nested(vec![put_op("a")], vec![put_op("a")]);
        check(vec![branches.clone()], vec![], Ok(()));
        check(
            vec![branches, put_op("a")],
            vec![],
            Err(Error::DuplicateKey),
        );
        let inner_delete = nested(vec![delete_op("a", "")], vec![]);
        check(
            vec![inner_delete, put_op("a")],
            vec![],
            Err(Error::DuplicateKey),
        );
    }
}
