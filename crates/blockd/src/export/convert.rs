//! NBD's words and the volume's, one into the other.

use super::refuse;
use nbd::{Errno, Export, Listed, Op, ReadPiece, RefusalKind, Refused, RequestId, Server};
use node::{ExportError, ExportInfo};
use proto::control::{MetaAnswer, MetaRefusal, VolumeSummary};
use volume::{GuestData, GuestError, GuestOp, GuestReply};

pub(super) fn guest_op(op: Op) -> GuestOp {
    match op {
        Op::Read { offset, len } => GuestOp::Read { offset, len },
        Op::Write { offset, len, data, fua } => {
            GuestOp::Write { offset, len, data: GuestData { payload: data }, fua }
        }
        Op::Flush => GuestOp::Flush,
        Op::Discard { offset, len, fua } => GuestOp::Discard { offset, len, fua },
        Op::WriteZeroes { offset, len, fua, no_hole } => GuestOp::WriteZeroes { offset, len, fua, no_hole },
        Op::Map { offset, len } => GuestOp::Map { offset, len },
        Op::Changes { offset, len, since } => GuestOp::Changes { offset, len, since },
    }
}

pub(super) fn complete(server: &mut Server, id: RequestId, result: Result<GuestReply, GuestError>) {
    match result {
        Ok(GuestReply::Done | GuestReply::Left) => server.done(id),
        Ok(GuestReply::Read(pieces)) => server.read_done(id, pieces.into_iter().map(piece)),
        Ok(GuestReply::Map(runs)) => server.status_done(id, &runs),
        Ok(GuestReply::Verified { .. }) => unreachable!("no NBD request asks for a verification"),
        Err(error) => server.fail(id, errno(error), &error.to_string()),
    }
}

fn piece(p: volume::ReadPiece) -> ReadPiece {
    match p {
        volume::ReadPiece::Zero { bytes } => ReadPiece::Zero { bytes },
        volume::ReadPiece::Data { payload, skip, len } => ReadPiece::Data { payload, skip, len },
    }
}

fn errno(error: GuestError) -> Errno {
    match error {
        GuestError::Io => Errno::Io,
        GuestError::NoSpace => Errno::NoSpace,
        GuestError::Invalid => Errno::Invalid,
        GuestError::ReadOnly => Errno::Perm,
        GuestError::Gone | GuestError::Withdrawn => Errno::Shutdown,
    }
}

pub(super) fn export(info: &ExportInfo) -> Export {
    Export { size: info.geometry.size, read_only: info.read_only, description: String::new() }
}

/// Why this node does not give the volume to a guest.
pub(super) fn refused(node: &str, volume: &str, error: &ExportError) -> Refused {
    let kind = match error {
        ExportError::NoSuchVolume | ExportError::NoSuchSnapshot => RefusalKind::Unknown,
        ExportError::Closing => RefusalKind::Shutdown,
        _ => RefusalKind::Policy,
    };
    refuse(kind, format!("volume \"{volume}\" cannot be had on node {node}: {error}"))
}

fn volumes(answer: MetaAnswer) -> Result<Vec<VolumeSummary>, ExportError> {
    match answer {
        MetaAnswer::Volumes(v) => Ok(v),
        MetaAnswer::Refused(MetaRefusal::NoSuchVolume) => Ok(Vec::new()),
        _ => Err(ExportError::NoMetad),
    }
}

pub(super) fn list(node: &str, answer: MetaAnswer) -> Result<Vec<Listed>, Refused> {
    let failed = |e| refuse(RefusalKind::Policy, format!("node {node} cannot list the volumes: {e}"));
    let ready = volumes(answer).map_err(failed)?.into_iter().filter(|v| v.ready);
    Ok(ready.map(|v| Listed { name: v.name, description: String::new() }).collect())
}

/// What metad says of one volume, or of one snapshot.
pub(super) fn looked(node: &str, name: &str, answer: MetaAnswer) -> Result<Export, Refused> {
    let refused = |e| refused(node, name, &e);
    match answer {
        MetaAnswer::Snapshot(found) => {
            let size = found.geometry.size;
            return Ok(Export { size, read_only: true, description: String::new() });
        }
        MetaAnswer::Refused(MetaRefusal::NoSuchSnapshot) => return Err(refused(ExportError::NoSuchSnapshot)),
        _ => {}
    }
    match volumes(answer).map_err(refused)?.as_slice() {
        [v] if v.ready => Ok(Export { size: v.geometry.size, read_only: false, description: String::new() }),
        [_] => Err(refused(ExportError::NotReady)),
        _ => Err(refused(ExportError::NoSuchVolume)),
    }
}
