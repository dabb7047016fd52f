//! All points. Those whose step etcd has too bear its name.

use crate::Point;

macro_rules! points {
    ($($(#[$doc:meta])* $point:ident = $name:literal;)*) => {
        $($(#[$doc])* pub static $point: Point = Point::new($name);)*

        /// All points, in the order of their steps.
        pub static ALL: &[&Point] = &[$(&$point),*];
    };
}

points! {
    /// Entries or a state go to the log next.
    RAFT_BEFORE_SAVE = "raftBeforeSave";
    /// They are durable, and raft and others are not told yet.
    RAFT_AFTER_SAVE = "raftAfterSave";
    /// A leader's messages go out next.
    RAFT_BEFORE_LEADER_SEND = "raftBeforeLeaderSend";
    /// Messages that waited for the log go out next.
    RAFT_BEFORE_FOLLOWER_SEND = "raftBeforeFollowerSend";
    /// The log begins anew behind a received snapshot next.
    RAFT_BEFORE_SAVE_SNAP = "raftBeforeSaveSnap";
    /// It does, durably.
    RAFT_AFTER_SAVE_SNAP = "raftAfterSaveSnap";
    /// A snapshot's record goes to the log next. etcd's spelling.
    RAFT_BEFORE_WAL_SAVE_SNAPSHOT = "raftBeforeWALSaveSnaphot";
    /// A received snapshot goes to the apply thread next.
    RAFT_BEFORE_APPLY_SNAP = "raftBeforeApplySnap";
    /// It has gone there.
    RAFT_AFTER_APPLY_SNAP = "raftAfterApplySnap";
    /// Segments of the log were dropped.
    RAFT_AFTER_WAL_RELEASE = "raftAfterWALRelease";
    /// One bunch of raft's outputs is handed on.
    RAFT_BEFORE_ADVANCE = "raftBeforeAdvance";
    /// What another member said on its streams is thrown away with `return`, as in etcd not only heartbeats.
    RAFT_DROP_HEARTBEAT = "raftDropHeartbeat";

    /// The log is synced next.
    WAL_BEFORE_SYNC = "walBeforeSync";
    /// It was.
    WAL_AFTER_SYNC = "walAfterSync";
    /// The next segment's file is there and is filled with zeros next.
    WAL_BEFORE_FILL = "walBeforeFill";
    /// It is filled, durably, under its temporary name.
    WAL_AFTER_FILL = "walAfterFill";
    /// A full segment is cut to its length and synced next.
    WAL_BEFORE_CLOSE_SEGMENT = "walBeforeCloseSegment";
    /// It is closed, and no other is begun.
    WAL_AFTER_CLOSE_SEGMENT = "walAfterCloseSegment";
    /// A new segment's head is written, not synced.
    WAL_BEFORE_HEAD_SYNC = "walBeforeHeadSync";
    /// Its head is durable, its name is the temporary one.
    WAL_BEFORE_SEGMENT_RENAME = "walBeforeSegmentRename";
    /// It has its name, which is not durable.
    WAL_BEFORE_SEGMENT_DIR_SYNC = "walBeforeSegmentDirSync";
    /// The segment is begun.
    WAL_AFTER_CUT = "walAfterCut";
    /// The oldest segment is removed next.
    WAL_BEFORE_REMOVE_SEGMENT = "walBeforeRemoveSegment";
    /// It is removed, not durably.
    WAL_AFTER_REMOVE_SEGMENT = "walAfterRemoveSegment";
    /// A new log is whole and gets its name next.
    WAL_BEFORE_CREATE_RENAME = "walBeforeCreateRename";
    /// It has its name, which is not durable.
    WAL_AFTER_CREATE_RENAME = "walAfterCreateRename";

    /// An entry is applied next.
    BEFORE_APPLY_ONE_ENTRY_NORMAL = "beforeApplyOneEntryNormal";
    /// A change of the members is applied next.
    BEFORE_APPLY_ONE_CONF_CHANGE = "beforeApplyOneConfChange";
    /// A batch of entries is in the engine, and nobody was told.
    BEFORE_WRITEBACK_BUF = "beforeWritebackBuf";
    /// It is published, and its callers were answered.
    AFTER_WRITEBACK_BUF = "afterWritebackBuf";
    /// The engine is flushed next.
    BEFORE_COMMIT = "beforeCommit";
    /// Its flush is under way, or is done where it is waited for.
    AFTER_COMMIT = "afterCommit";
    /// A compaction is noted in the batch that goes to the engine next.
    COMPACT_BEFORE_COMMIT_SCHEDULED = "compactBeforeCommitScheduledCompact";
    /// It is noted in the engine.
    COMPACT_AFTER_COMMIT_SCHEDULED = "compactAfterCommitScheduledCompact";
    /// The last piece of a compaction, with the word that it is finished, is written next.
    COMPACT_BEFORE_SET_FINISHED = "compactBeforeSetFinishedCompact";
    /// It is written.
    COMPACT_AFTER_SET_FINISHED = "compactAfterSetFinishedCompact";
    /// A piece of a compaction that is not the last one is written next.
    COMPACT_BEFORE_COMMIT_BATCH = "compactBeforeCommitBatch";
    /// It is written.
    COMPACT_AFTER_COMMIT_BATCH = "compactAfterCommitBatch";
    /// The engine is defragmented next.
    DEFRAG_BEFORE_COPY = "defragBeforeCopy";

    /// A piece of a snapshot's database goes out next.
    SNAP_BEFORE_SEND_PIECE = "snapBeforeSendPiece";
    /// A received database is written, not synced.
    SNAP_BEFORE_BODY_SYNC = "snapBeforeBodySync";
    /// It is durable under its temporary name.
    SNAP_BEFORE_RENAME = "snapBeforeRename";
    /// It has its name, which is not durable.
    SNAP_DB_RENAME_BEFORE_DIR_SYNC = "snapDBRenameBeforeDirSync";
    /// That sync fails with `return("why")`.
    SNAP_DB_DIR_SYNC_ERROR = "snapDBDirSyncError";
    /// It is durable, and raft has not heard of it.
    SNAP_AFTER_DIR_SYNC = "snapAfterDirSync";
    /// A new engine is filled from a received database next.
    APPLY_BEFORE_OPEN_SNAPSHOT = "applyBeforeOpenSnapshot";
    /// The new engine is in use, and nobody was told.
    APPLY_AFTER_OPEN_SNAPSHOT = "applyAfterOpenSnapshot";
    /// Databases that are in the state are removed next.
    SNAP_BEFORE_SWEEP = "snapBeforeSweep";

    /// A new, empty database of the engine lies beside the one in use.
    ENGINE_AFTER_BUILD = "engineAfterBuild";
    /// Rows of a database of etcd's were written to a new engine.
    IMPORT_AFTER_BATCH = "importAfterBatch";
    /// All rows are there, nothing is flushed.
    IMPORT_BEFORE_FLUSH = "importBeforeFlush";
    /// A small file of the engine is durable under its temporary name.
    ENGINE_BEFORE_RENAME = "engineBeforeRename";
    /// It has its name, which is not durable.
    ENGINE_BEFORE_DIR_SYNC = "engineBeforeDirSync";
    /// The pointer to the database in use is changed next.
    ENGINE_BEFORE_SWITCH = "engineBeforeSwitch";
    /// The pointer is changed, durably.
    ENGINE_AFTER_SWITCH = "engineAfterSwitch";
    /// A database that is not in use is removed next.
    ENGINE_BEFORE_REMOVE = "engineBeforeRemove";

    /// The log was made, and no entry is in it.
    BOOT_AFTER_CREATE_LOG = "bootAfterCreateLog";
    /// The founding entries are durable.
    BOOT_AFTER_FOUND = "bootAfterFound";
    /// The engine is this member's, and empty.
    BOOT_AFTER_CLAIM = "bootAfterClaim";
    /// The member tells the cluster its name next.
    BEFORE_PUBLISHING = "beforePublishing";
    /// Data that are not used any more are renamed next.
    TAKEOVER_BEFORE_ASIDE = "takeoverBeforeAside";
    /// They are renamed, not durably.
    TAKEOVER_BEFORE_DIR_SYNC = "takeoverBeforeDirSync";

    /// An export has a copy of the log.
    EXPORT_AFTER_LOG = "exportAfterLog";
    /// It has its database.
    EXPORT_AFTER_DATABASE = "exportAfterDatabase";
    /// It has its `.snap` file, and no record of it.
    EXPORT_AFTER_SNAP = "exportAfterSnap";
    /// It is whole under its temporary name.
    EXPORT_BEFORE_RENAME = "exportBeforeRename";
    /// It has its name, which is not durable.
    EXPORT_BEFORE_DIR_SYNC = "exportBeforeDirSync";

    /// A file of the bootstrap guard is durable under its temporary name.
    GUARD_BEFORE_RENAME = "guardBeforeRename";
    /// It has its name, which is not durable.
    GUARD_BEFORE_DIR_SYNC = "guardBeforeDirSync";
    /// The data are made, and the record is not marked as used.
    GUARD_BEFORE_MARK = "guardBeforeMark";

    /// A batch of watch responses goes to its client next.
    BEFORE_SEND_WATCH_RESPONSE = "beforeSendWatchResponse";
}
