//! `ErrorDetail` in and out of a gRPC status.

use crate::v1::ErrorDetail;
use prost::Message;
use tonic::{Code, Status};

/// A status that carries `detail`; its message is the first line.
#[must_use]
pub fn status(code: Code, detail: &ErrorDetail) -> Status {
    Status::with_details(code, detail.message.clone(), detail.encode_to_vec().into())
}

/// What a status of ours carries; `None` if it is not one of ours (a broken connection, another server).
#[must_use]
pub fn detail(status: &Status) -> Option<ErrorDetail> {
    if status.details().is_empty() {
        return None;
    }
    ErrorDetail::decode(status.details()).ok()
}

/// "Ask the leader": `leader` is its `host:port`, if known.
#[must_use]
pub fn not_leader(leader: Option<String>) -> Status {
    status(
        Code::Unavailable,
        &ErrorDetail {
            code: NOT_LEADER,
            message: "this metad does not lead".into(),
            cause: leader
                .as_ref()
                .map_or_else(|| "no leader is known".into(), |l| format!("the leader is at {l}")),
            fix: String::new(),
            leader: Some(leader.unwrap_or_default()),
            exit: 20,
        },
    )
}

/// Code of `not_leader`.
pub const NOT_LEADER: u32 = 1901;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_survives_the_status() {
        let s = not_leader(Some("127.0.0.1:7".into()));
        let d = detail(&s).unwrap();
        assert_eq!((d.code, d.leader.as_deref()), (NOT_LEADER, Some("127.0.0.1:7")));
        assert!(detail(&Status::internal("x")).is_none());
    }
}
