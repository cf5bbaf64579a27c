//! The node's notices as lines of the log.

use node::event::Notice;

/// One line each; how bad it is decides the level.
pub fn log(notice: &Notice) {
    match notice {
        Notice::Store { drive, notice } => {
            let drive = drive.map(|d| d.to_string()).unwrap_or_default();
            match notice {
                store::event::Notice::BadBlock { branch, chunk, block, state } => {
                    tracing::warn!(drive, %branch, %chunk, block, ?state, "bad block");
                }
                store::event::Notice::SpaceLow { free_extents } => {
                    tracing::warn!(drive, free_extents, "little space left");
                }
                other => tracing::info!(drive, notice = ?other, "drive"),
            }
        }
        Notice::Volume { branch, name, notice } => match notice {
            volume::event::Notice::Dropping { drive, chunks, cause } => {
                tracing::warn!(volume = name, %branch, %drive, chunks, ?cause, "a replica is dropped");
            }
            volume::event::Notice::Waiting { reason } => {
                tracing::warn!(volume = name, %branch, ?reason, "I/O waits");
            }
            volume::event::Notice::BadEverywhere { chunk, block } => {
                tracing::error!(volume = name, %branch, %chunk, block, "no replica has a good copy");
            }
            other => tracing::info!(volume = name, %branch, notice = ?other, "volume"),
        },
        Notice::LinkUp { node } => tracing::info!(peer = %node, "link up"),
        Notice::LinkDown { node } => tracing::warn!(peer = %node, "link down"),
        Notice::HandshakeRefused { node, refusal } => {
            let peer = node.map(|n| n.to_string()).unwrap_or_default();
            tracing::warn!(peer, %refusal, "handshake refused");
        }
        Notice::BadFrame { node, error } => {
            let peer = node.map(|n| n.to_string()).unwrap_or_default();
            tracing::warn!(peer, %error, "a peer's bytes were not understood: connection closed");
        }
        Notice::Stranger { drive } => {
            tracing::error!(%drive, "metad calls this drive rolled back or copied: it serves nobody");
        }
        Notice::NotConfirmed { drive, refusal } => {
            let refusal = node::in_words(refusal);
            tracing::warn!(%drive, refusal, "metad does not confirm this drive: it serves nobody; asked again");
        }
        Notice::Verified { request, state } => tracing::info!(%request, ?state, "volume verified"),
        Notice::SessionClosed { branch, reason } => tracing::info!(%branch, ?reason, "session closed"),
    }
}
