//! RangeStream beside real etcd: the same keys, the same requests; what the pieces add up to and
//! every error must be the same. How a range is cut is each server's own affair.

#![allow(clippy::unwrap_used)]

use e2e::{Kind, Server};
use proto::{
    etcdserverpb::{
        CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp,
        TxnRequest,
        kv_client::KvClient,
        range_request::{SortOrder, SortTarget},
        request_op::Request,
    },
    mvccpb::KeyValue,
};
use tonic::{Code, transport::Channel};

/// Enough for many pieces.
const KEYS: usize = 3000;
/// Values are of different lengths, up to this.
const LONGEST_VALUE: usize = 5000;

/// All of a stream: its keys, and what the last piece says. The error, if it ended with one.
#[derive(Debug, PartialEq)]
struct Whole {
    kvs: Vec<KeyValue>,
    revision: i64,
    count: i64,
    more: bool,
}

async fn stream(
    client: &mut KvClient<Channel>,
    request: RangeRequest,
) -> Result<Whole, (Code, String)> {
    let told = |status: tonic::Status| (status.code(), status.message().to_owned());
    let mut pieces = client
        .range_stream(request)
        .await
        .map_err(told)?
        .into_inner();
    let mut kvs = Vec::new();
    let mut last: Option<RangeResponse> = None;
    while let Some(piece) = pieces.message().await.map_err(told)? {
        assert!(
            last.is_none(),
            "a piece came behind the one with the header"
        );
        let mut piece = piece.range_response.unwrap();
        kvs.append(&mut piece.kvs);
        match piece.header {
            Some(_) => last = Some(piece),
            None => assert!(
                piece.count == 0 && !piece.more,
                "only the last piece says it"
            ),
        }
    }
    let last = last.expect("a piece with a header");
    let header = last.header.unwrap();
    assert!(header.cluster_id != 0 && header.member_id != 0 && header.raft_term != 0);
    Ok(Whole {
        kvs,
        revision: header.revision,
        count: last.count,
        more: last.more,
    })
}

/// One revision for each hundred puts, then one for each hundred deletions.
async fn fill(client: &mut KvClient<Channel>) {
    let key = |number: usize| format!("k{number:05}").into();
    let put = |number: usize| {
        Request::RequestPut(PutRequest {
            key: key(number),
            value: vec![b'v'; number * 7919 % LONGEST_VALUE].into(),
            ..PutRequest::default()
        })
    };
    let delete = |number: usize| {
        Request::RequestDeleteRange(DeleteRangeRequest {
            key: key(number),
            ..DeleteRangeRequest::default()
        })
    };
    let numbers: Vec<usize> = (0..KEYS).collect();
    let puts = numbers.iter().map(|&number| put(number));
    let deletes = numbers.iter().step_by(10).map(|&number| delete(number));
    let all: Vec<Request> = puts.chain(deletes).collect();
    for hundred in all.chunks(100) {
        let ops = hundred.iter().map(|request| RequestOp {
            request: Some(request.clone()),
        });
        let txn = TxnRequest {
            success: ops.collect(),
            ..TxnRequest::default()
        };
        client.txn(txn).await.unwrap();
    }
    let compact = CompactionRequest {
        revision: 10,
        physical: true,
    };
    client.compact(compact).await.unwrap();
}

fn requests() -> Vec<RangeRequest> {
    let all = RangeRequest {
        key: "k".into(),
        range_end: "l".into(),
        ..RangeRequest::default()
    };
    let with = |change: fn(&mut RangeRequest)| {
        let mut request = all.clone();
        change(&mut request);
        request
    };
    vec![
        all.clone(),
        with(|r| r.limit = 1),
        with(|r| r.limit = 10),
        with(|r| r.limit = 11),
        with(|r| r.limit = 2699),
        with(|r| r.limit = 2700),
        with(|r| r.limit = 100_000),
        with(|r| r.limit = -1),
        with(|r| r.revision = 20),
        with(|r| {
            r.revision = 20;
            r.limit = 500;
        }),
        with(|r| r.revision = -5),
        with(|r| r.revision = 9),
        with(|r| r.revision = 1_000_000),
        with(|r| r.serializable = true),
        with(|r| r.keys_only = true),
        with(|r| r.count_only = true),
        with(|r| {
            r.count_only = true;
            r.limit = 3;
        }),
        with(|r| r.range_end = vec![0].into()),
        with(|r| {
            r.key = vec![0].into();
            r.range_end = vec![0].into();
        }),
        with(|r| {
            r.key = "k00001".into();
            r.range_end = Vec::new().into();
        }),
        with(|r| r.key = "nothing".into()),
        with(|r| r.key = Vec::new().into()),
        with(|r| r.sort_order = SortOrder::Ascend.into()),
        with(|r| r.sort_order = SortOrder::Descend.into()),
        with(|r| {
            r.sort_order = SortOrder::Ascend.into();
            r.sort_target = SortTarget::Mod.into();
        }),
        with(|r| r.sort_target = SortTarget::Mod.into()),
        with(|r| r.sort_order = 9),
        with(|r| r.min_mod_revision = 5),
        with(|r| r.max_mod_revision = 5),
        with(|r| r.min_create_revision = 5),
        with(|r| r.max_create_revision = 5),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pieces_add_up_to_what_etcd_sends() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let cairn = Server::start(Kind::Cairn, folders[0].path(), &[]);
    let etcd = Server::start(Kind::Etcd, folders[1].path(), &["--unsafe-no-fsync"]);
    let connect = |url: String| async {
        let client = KvClient::connect(url).await.unwrap();
        client.max_decoding_message_size(usize::MAX)
    };
    let mut cairn = connect(cairn.url().to_owned()).await;
    let mut etcd = connect(etcd.url().to_owned()).await;
    tokio::join!(fill(&mut cairn), fill(&mut etcd));
    let mut answered = 0;
    for request in requests() {
        let ours = stream(&mut cairn, request.clone()).await;
        let theirs = stream(&mut etcd, request.clone()).await;
        answered += i32::from(ours.is_ok());
        assert!(
            ours == theirs,
            "{request:?}\n{}\n{}",
            brief(&ours),
            brief(&theirs)
        );
    }
    assert!(answered > 15, "most requests are good ones: {answered}");
}

fn brief(answer: &Result<Whole, (Code, String)>) -> String {
    match answer {
        Ok(whole) => format!(
            "{} keys, revision {}, count {}, more {}",
            whole.kvs.len(),
            whole.revision,
            whole.count,
            whole.more
        ),
        Err(error) => format!("{error:?}"),
    }
}

/// A stream shows one revision, whatever is written while it is read; and ends with an error when
/// that revision is compacted before it was sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_do_not_show_in_a_stream_and_compaction_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(Kind::Cairn, folder.path(), &[]);
    let mut client = KvClient::connect(server.url().to_owned()).await.unwrap();
    // More than what connection, stream and server buffer.
    const LARGE: usize = 200;
    for number in 0..LARGE {
        let put = PutRequest {
            key: format!("k{number:03}").into(),
            value: vec![0; 200_000].into(),
            ..PutRequest::default()
        };
        client.put(put).await.unwrap();
    }
    let all = RangeRequest {
        key: "k".into(),
        range_end: "l".into(),
        ..RangeRequest::default()
    };
    let mut writer = KvClient::connect(server.url().to_owned()).await.unwrap();
    let mut pieces = client.range_stream(all.clone()).await.unwrap().into_inner();
    let first = pieces.message().await.unwrap().unwrap();
    let mut found = first.range_response.unwrap().kvs.len();
    let delete = DeleteRangeRequest {
        key: "k".into(),
        range_end: "l".into(),
        ..DeleteRangeRequest::default()
    };
    let deleted = writer.delete_range(delete).await.unwrap().into_inner();
    let mut last = None;
    while let Some(piece) = pieces.message().await.unwrap() {
        let piece = piece.range_response.unwrap();
        found += piece.kvs.len();
        last = piece.header;
    }
    let deletion = deleted.header.unwrap().revision;
    assert_eq!((found, last.unwrap().revision), (LARGE, deletion - 1));

    let before = RangeRequest {
        revision: deletion - 1,
        ..all
    };
    let mut pieces = client.range_stream(before).await.unwrap().into_inner();
    pieces.message().await.unwrap().unwrap();
    let compact = CompactionRequest {
        revision: deletion,
        physical: true,
    };
    writer.compact(compact).await.unwrap();
    let ended = loop {
        match pieces.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("all of a compacted revision was sent"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::OutOfRange);
    assert!(ended.message().contains("compacted"), "{ended}");
}
