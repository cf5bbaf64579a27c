//! What talks to a cluster from outside: NBD as a client, the load generator and its check.

pub mod bench;
pub mod dev;
pub mod load;
pub mod memory_server;
pub mod nbd_client;
pub mod uri;
