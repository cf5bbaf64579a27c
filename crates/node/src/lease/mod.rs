//! Leases of node pairs (architecture, 5.5): what others hold from us, and what we hold from them.

pub(crate) mod granter;
pub(crate) mod holder;

pub(crate) use granter::Granter;
pub(crate) use holder::Holder;
