//! What talks to a cluster from outside: NBD as a client, the load generator and its check, the control plane's client,
//! a cluster in a folder, and `blockctl`.

pub mod bench;
pub mod cli;
pub mod control;
pub mod dev;
pub mod load;
pub mod memory_server;
pub mod nbd_client;
pub mod uri;
