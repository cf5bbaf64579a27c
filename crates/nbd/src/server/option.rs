//! What options ask for: parsed, never trusted.

use crate::wire::{self, Reader, allocation, changed, opt};

/// Most snapshots that one connection may ask about; others are not selected, as the protocol allows.
pub(crate) const SINCE_MAX: usize = 4;

/// The data of an option contradicts itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Malformed(pub &'static str);

/// Data of INFO and GO.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct InfoRequest {
    pub name: String,
    /// Kinds asked for beyond those that are always sent.
    pub wants_name: bool,
    pub wants_description: bool,
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct MetaRequest {
    pub name: String,
    /// `base:allocation` is among what was asked for.
    pub allocation: bool,
    /// Snapshots of which `blockd:changed:` was asked for, each once.
    pub since: Vec<String>,
}

pub(crate) fn parse_info(data: &[u8]) -> Result<InfoRequest, Malformed> {
    let mut r = Reader(data);
    let name = r.string().ok_or(Malformed("bad export name"))?.to_owned();
    let count = r.u16().ok_or(Malformed("no count of information requests"))?;
    let mut request = InfoRequest { name, wants_name: false, wants_description: false };
    for _ in 0..count {
        match r.u16().ok_or(Malformed("fewer information requests than counted"))? {
            wire::info::NAME => request.wants_name = true,
            wire::info::DESCRIPTION => request.wants_description = true,
            _ => {} // always sent, or unknown: ignored by the protocol's rule
        }
    }
    if !r.is_empty() {
        return Err(Malformed("data behind the information requests"));
    }
    Ok(request)
}

/// `option` decides about wildcards: a list may ask for a whole namespace, a selection may not.
pub(crate) fn parse_meta(option: u32, data: &[u8]) -> Result<MetaRequest, Malformed> {
    let listing = option == opt::LIST_META_CONTEXT;
    let mut r = Reader(data);
    let name = r.string().ok_or(Malformed("bad export name"))?.to_owned();
    let count = r.u32().ok_or(Malformed("no count of queries"))?;
    let mut allocation = listing && count == 0;
    let mut since: Vec<String> = Vec::new();
    for _ in 0..count {
        let query = r.string().ok_or(Malformed("bad query"))?;
        if !query.contains(':') {
            return Err(Malformed("a query without a namespace"));
        }
        if let Some(snapshot) = query.strip_prefix(changed::PREFIX)
            && !snapshot.is_empty()
            && since.len() < SINCE_MAX
            && !since.iter().any(|s| s == snapshot)
        {
            since.push(snapshot.to_owned());
        }
        allocation |= query == allocation::NAME || (listing && query == "base:");
    }
    if !r.is_empty() {
        return Err(Malformed("data behind the queries"));
    }
    Ok(MetaRequest { name, allocation, since })
}
