//! Events and effects in words, for the steps; and in numbers, for the digest.

use node::{Effect, Event};
use proto::control::MetaRequest;
use store::IoOp;

#[must_use]
pub fn event(e: &Event) -> String {
    match e {
        Event::Io { handle, io, result } => {
            let what = match result {
                store::IoResult::Read(p) => format!("read {} blocks", p.blocks()),
                other => format!("{other:?}"),
            };
            format!("io {} on {handle}: {what}", io.0)
        }
        Event::AddDrive(d) => format!("drive {} opened for the {:?} time", d.handle, d.opening),
        Event::Guest { export, request } => {
            format!("guest on {export}: {:?} {:?}", request.ticket, request.op)
        }
        other => format!("{other:?}"),
    }
}

/// A number that tells events apart.
#[must_use]
pub fn code(e: &Event) -> u64 {
    match e {
        Event::AddDrive(d) => 1 << 32 | u64::from(d.handle),
        Event::Io { io, .. } => 2 << 32 ^ io.0,
        Event::Accepted { link } => 3 << 32 ^ link.0,
        Event::Dialled { link } => 4 << 32 ^ link.0,
        Event::LinkClosed { link } => 5 << 32 ^ link.0,
        Event::Meta { token, .. } => 6 << 32 ^ *token,
        Event::Watch(_) => 7 << 32,
        Event::OpenExport { export, .. } => 8 << 32 ^ export.0,
        Event::CloseExport { export } => 9 << 32 ^ export.0,
        Event::Guest { request, .. } => 10 << 32 ^ request.ticket.0,
        Event::Wake => 11 << 32,
        Event::TurnEnd => 12 << 32,
        Event::Shutdown => 13 << 32,
    }
}

#[must_use]
pub fn effect(e: &Effect) -> String {
    match e {
        Effect::Io { handle, io, op } => match op {
            IoOp::Write { offset, pieces } => {
                let blocks: usize = pieces.iter().map(proto::Payload::blocks).sum();
                format!("io {} on {handle}: write {blocks} blocks at {offset}", io.0)
            }
            other => format!("io {} on {handle}: {other:?}", io.0),
        },
        Effect::Send { link, bytes } => format!("send {} bytes on {link:?}", bytes.len()),
        Effect::Meta { token, request: MetaRequest::Heartbeat { .. } } => format!("meta {token}: heartbeat"),
        other => format!("{other:?}"),
    }
}

#[must_use]
pub fn effect_code(e: &Effect) -> u64 {
    match e {
        Effect::Io { io, op, .. } => {
            let (kind, offset) = match op {
                IoOp::Read { offset, .. } => (1, *offset),
                IoOp::Write { offset, .. } => (2, *offset),
                IoOp::Flush => (3, 0),
            };
            kind << 60 ^ io.0 << 40 ^ offset
        }
        Effect::Dial { link, .. } => 4 << 60 ^ link.0,
        Effect::Send { link, bytes } => 5 << 60 ^ link.0 << 20 ^ bytes.len() as u64,
        Effect::CloseLink { link } => 6 << 60 ^ link.0,
        Effect::Meta { token, .. } => 7 << 60 ^ *token,
        Effect::ExportOpened { export, .. } => 8 << 60 ^ export.0,
        Effect::ExportRefused { export, .. } => 9 << 60 ^ export.0,
        Effect::ExportClosed { export } => 10 << 60 ^ export.0,
        Effect::ExportBroken { export } => 10 << 60 ^ export.0 ^ 1 << 59,
        Effect::ExportResized { export, .. } => 11 << 60 ^ export.0,
        Effect::ExportReconnect { export } => 11 << 60 ^ export.0 ^ 1 << 59,
        Effect::Complete { ticket, .. } => 12 << 60 ^ ticket.0,
        Effect::DriveOpened { .. } => 13 << 60,
        Effect::DriveFailed { .. } => 14 << 60,
        Effect::Stopped => 15 << 60,
        Effect::Notice(_) => 0,
    }
}
